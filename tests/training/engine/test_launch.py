"""Settings of `accelerate launch`: unsupported ones are refused, and the processes of a machine share its cores."""

import pytest

from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.data.dataset import decoding_workers
from training.pretrain import check, pretrain
from training.runs.run import Run


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16"),
    ],
)
def test_refuses_accelerate_settings_that_are_not_supported(variable, value, words, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=words):
        check(PretrainConfig())
    run = Run.create("a", "pretrain", PretrainConfig().to_dict(), root=tmp_path)
    with pytest.raises(ConfigError, match=words):
        pretrain(PretrainConfig(), run)
    assert words in run.status()["message"]


def test_other_accelerate_settings_are_accepted(monkeypatch):
    for variable, value in (("ACCELERATE_USE_FSDP", "false"), ("ACCELERATE_MIXED_PRECISION", "bf16")):
        monkeypatch.setenv(variable, value)
    check(PretrainConfig())


@pytest.mark.parametrize(("cores", "processes", "workers"), [(128, 8, 15), (2, 1, 1), (4, 8, 1), (16, 1, 15)])
def test_the_processes_of_a_machine_share_its_cores(cores, processes, workers, monkeypatch):
    monkeypatch.setattr("training.data.dataset.cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert decoding_workers(-1) == workers
    assert decoding_workers(3) == 3
