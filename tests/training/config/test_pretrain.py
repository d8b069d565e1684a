"""Settings survive JSON unchanged, and invalid ones are refused with the name and the value given."""

import json
import math

import pytest

from training.config.base import ConfigError
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset


def test_settings_survive_json_unchanged():
    config = PretrainConfig(data=("a", "b.zip"), mask_ratio=(0.2, 0.3), lr=1e-3, compile=True, seed=7)
    again = PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.data == ("a", "b.zip")
    assert hash(again) == hash(config)


def test_numbers_have_the_type_of_the_setting():
    """JSON writes 3.0 as 3 and some programs 64 as 64.0."""
    config = PretrainConfig(clip=2, batch=64.0, global_scale=[1, 1])
    assert (config.clip, config.batch, config.global_scale) == (2.0, 64, (1.0, 1.0))
    assert [type(v) for v in (config.clip, config.batch, *config.global_scale)] == [float, int, float, float]


WRONG_TYPE = [
    ({"batch": "64"}, "int.*'64'"), ({"batch": 6.5}, "int.*6.5"), ({"batch": True}, "int.*True"),
    ({"batch": math.inf}, "int.*inf"), ({"lr": None}, "float.*None"), ({"lr": False}, "float.*False"),
    ({"compile": 1}, "bool.* 1"), ({"start": 3}, "str.* 3"), ({"mask_ratio": 0.3}, "list of float.*0.3"),
    ({"mask_ratio": ("a", "b")}, "list of float.*'a'"), ({"blur": [1.0, None, 0.5]}, "list of float.*None"),
    ({"flip": [0.5]}, "float.*0.5"), ({"data": "folder"}, "list of str.*'folder'"),
    ({"data": ["folder", 3]}, "list of str.*3"),
]  # fmt: skip
OUT_OF_BOUNDS = [
    ({"batch": 0}, "1 .*65536.* 0"), ({"lr": -1e-3}, "0.* -0.001"), ({"lr": math.nan}, "nan"),
    ({"lr": math.inf}, "inf"), ({"lr": 10**400}, "inf"), ({"batch": 10**400}, "65536.*inf"),
    ({"flip": 1.01}, "0 .*1.* 1.01"), ({"blur": (1.0, 2.0, 0.5)}, "0 .*1.* 2"),
    ({"mask_ratio": (0.1, math.nan)}, "nan"), ({"patch": 5}, "2, 4, 8, 14, 16.* 5"),
    ({"centring": "Sinkhorn"}, "ema, sinkhorn, none.*'Sinkhorn'"),
]  # fmt: skip
CONTRADICTIONS = [
    ({"dim": 100, "heads": 3}, "100.*heads.*3"), ({"global_size": 90}, "90.*patch.*8"),
    ({"local_size": 48, "patch": 14, "global_size": 98}, "48.*patch.*14"), ({"mask_ratio": (0.3,)}, "2 .*1"),
    ({"local_scale": ()}, "2 .*0"), ({"blur": (0.5, 0.5)}, "3 .*2"), ({"jitter_strength": (0.4,) * 5}, "4 .*5"),
    ({"global_scale": (0.8, 0.4)}, "0.8 0.4"), ({"blur_sigma": (2, 0.1)}, "2 0.1"),
    ({"dino_weight": 0}, "ibot_weight.*0"), ({"batch": 64, "accumulate": 3}, "64.*accumulate.*3"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "words"), [*WRONG_TYPE, *OUT_OF_BOUNDS, *CONTRADICTIONS])
def test_invalid_values_are_refused_in_one_line(values, words):
    """words: the values that the message names after the setting."""
    with pytest.raises(ConfigError, match=f"{next(iter(values))}.*{words}") as raised:
        PretrainConfig(**values)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'learning_rate'.*accumulate, batch, "):
        PretrainConfig.from_dict({"learning_rate": 1e-3})
    with pytest.raises(ConfigError, match=r"'huge'.*micro, "):
        pretrain_preset("huge")


def test_a_file_gives_the_values_that_it_names(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "pretrain", "lr": 0.001, "blur": [1, 0, 0]}))
    assert PretrainConfig.read(path) == {"lr": 0.001, "blur": [1, 0, 0]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"lr": 0.001', "JSON"), (b'{"lr": ' + b"9" * 400 + b"}", "400 digits"), (b"[" * 100_000, "nested"),
        (b"\xff\xfe\x00", "JSON"), (b"[1, 2]", "list"), (b'{"lr": NaN}', "lr .*nan"), (b'{"rate": 1}', "'rate'"),
        (None, "missing"),
    ],
)  # fmt: skip
def test_a_file_without_a_configuration_is_refused(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        PretrainConfig.read(path)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    PretrainConfig.from_dict(pretrain_preset(name))
