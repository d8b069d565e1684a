"""Alarms on recorded runs, healthy and failing, see `record_runs`."""

import json

import pytest

from tests.training.record_runs import FOLDER, RUNS
from training.config.pretrain import PretrainConfig
from training.dino.collapse import Monitor

UNIFORM, FEW, CLS, LOWER = "uniform", "few prototypes", "CLS tokens", "lower lr"
EXPECTED = {
    "dino": (),
    "dino-ibot-koleo": (),
    "dino-ibot-koleo-own-head": (),
    "sinkhorn": (),
    "sinkhorn-ibot-koleo": (),
    "ibot-alone": (),
    "four-prototypes": (),
    "eight-prototypes-sinkhorn": (),
    "narrow-bottleneck": (),
    "not-sharp": (UNIFORM, "lower teacher_temperature"),
    "not-centred": (FEW, "centring ema or sinkhorn"),
    "high-lr": (CLS, UNIFORM, LOWER),
    "high-lr-ibot-koleo": (UNIFORM, LOWER),
    "high-lr-sinkhorn": ("5.55", LOWER),
}


def alarms(name: str) -> list[str]:
    """The alarms of a recorded run, each once, in their order."""
    recorded = json.loads((FOLDER / f"{name}.json").read_text())
    monitor = Monitor(PretrainConfig(**recorded["config"]), recorded["steps"])
    return list(dict.fromkeys(filter(None, map(monitor.alarm, recorded["records"]))))


@pytest.mark.parametrize("name", RUNS)
def test_failing_runs_raise_their_alarm_and_healthy_ones_none(name):
    found = alarms(name)
    assert bool(found) == bool(EXPECTED[name])
    for words in EXPECTED[name]:
        assert words in " ".join(found)


def test_recorded_runs_have_the_settings_listed():
    for name, values in RUNS.items():
        recorded = json.loads((FOLDER / f"{name}.json").read_text())
        assert values.items() <= recorded["config"].items(), name
        assert recorded["records"][-1]["step"] == recorded["steps"]


if __name__ == "__main__":  # prints the table
    for name in RUNS:
        print(f"{name:28} {' / '.join(alarms(name)) or '-'}")
