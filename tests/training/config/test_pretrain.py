"""Settings go through JSON unchanged, and each one that cannot be is refused in one sentence."""

import json
import math

import pytest

from dinoviz.errors import DinovizError
from training.config.base import ConfigError
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset


def refused(**values) -> str:
    with pytest.raises(ConfigError) as raised:
        PretrainConfig(**values)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_settings_go_through_json_unchanged():
    config = PretrainConfig(data=("a", "b.zip"), mask_ratio=(0.2, 0.3), lr=1e-3, compile=True, seed=7)
    again = PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.data == ("a", "b.zip")
    assert hash(again) == hash(config)


def test_numbers_are_of_the_type_that_the_setting_has():
    """JSON writes 3.0 as 3 and some programs 64 as 64.0."""
    config = PretrainConfig(clip=2, batch=64.0, global_scale=[1, 1])
    assert (config.clip, config.batch, config.global_scale) == (2.0, 64, (1.0, 1.0))
    assert [type(v) for v in (config.clip, config.batch, *config.global_scale)] == [float, int, float, float]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch": "64"}, "batch is of type int, not '64'."),
        ({"batch": 6.5}, "batch is of type int, not 6.5."),
        ({"batch": True}, "batch is of type int, not True."),
        ({"batch": math.inf}, "batch is of type int, not inf."),
        ({"lr": None}, "lr is of type float, not None."),
        ({"lr": False}, "lr is of type float, not False."),
        ({"compile": 1}, "compile is of type bool, not 1."),
        ({"start": 3}, "start is of type str, not 3."),
        ({"mask_ratio": 0.3}, "mask_ratio is of type list of float, not 0.3."),
        ({"mask_ratio": ("a", "b")}, "mask_ratio is of type list of float, not ('a', 'b')."),
        ({"blur": [1.0, None, 0.5]}, "blur is of type list of float, not [1.0, None, 0.5]."),
        ({"flip": [0.5]}, "flip is of type float, not [0.5]."),
        ({"data": "folder"}, "data is of type list of str, not 'folder'."),
        ({"data": ["folder", 3]}, "data is of type list of str, not ['folder', 3]."),
    ],
)
def test_another_type_is_refused(values, sentence):
    assert refused(**values) == sentence


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch": 0}, "batch is at least 1 and at most 65536, not 0."),
        ({"lr": -1e-3}, "lr is at least 0, not -0.001."),
        ({"lr": math.nan}, "lr is at least 0, not nan."),
        ({"lr": math.inf}, "lr is at least 0, not inf."),
        ({"lr": 10**400}, "lr is at least 0, not inf."),
        ({"batch": 10**400}, "batch is at least 1 and at most 65536, not inf."),
        ({"flip": 1.01}, "flip is at least 0 and at most 1, not 1.01."),
        ({"blur": (1.0, 2.0, 0.5)}, "blur is at least 0 and at most 1, not 2."),
        ({"mask_ratio": (0.1, math.nan)}, "mask_ratio is at least 0 and at most 1, not nan."),
        ({"patch": 5}, "patch is one of 2, 4, 8, 14, 16, not 5."),
        ({"centring": "Sinkhorn"}, "centring is one of ema, sinkhorn, none, not 'Sinkhorn'."),
    ],
)
def test_a_value_out_of_bounds_is_refused(values, sentence):
    assert refused(**values) == sentence


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"dim": 100, "heads": 3}, "dim (100) must be a multiple of heads (3)."),
        ({"global_size": 90}, "global_size (90) must be a multiple of patch (8)."),
        ({"patch": 14, "global_size": 98}, "local_size (48) must be a multiple of patch (14)."),
        ({"mask_ratio": (0.3,)}, "mask_ratio takes 2 numbers, not 1."),
        ({"local_scale": ()}, "local_scale takes 2 numbers, not 0."),
        ({"blur": (0.5, 0.5)}, "blur takes 3 numbers, not 2."),
        ({"jitter_strength": (0.4,) * 5}, "jitter_strength takes 4 numbers, not 5."),
        ({"global_scale": (0.8, 0.4)}, "global_scale takes the least first, then the most, not 0.8 0.4."),
        ({"blur_sigma": (2, 0.1)}, "blur_sigma takes the least first, then the most, not 2 0.1."),
        ({"dino_weight": 0}, "dino_weight and ibot_weight are both 0: there is nothing to learn."),
        ({"batch": 64, "accumulate": 3}, "batch (64) must be a multiple of accumulate (3)."),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, sentence):
    assert refused(**values) == sentence


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"There is no setting 'learning_rate'\. Known are accumulate, batch, .*\."):
        PretrainConfig.from_dict({"learning_rate": 1e-3})


def test_a_file_gives_the_values_that_it_names(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "pretrain", "lr": 0.001, "blur": [1, 0, 0]}))
    assert PretrainConfig.read(path) == {"lr": 0.001, "blur": [1, 0, 0]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"lr": 0.001', "JSON"),
        (b'{"lr": ' + b"9" * 400 + b"}", "400 digits"),
        (b"[" * 100_000, "nested"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[1, 2]", "list"),
        (b'{"lr": NaN}', "lr is at least 0, not nan"),
        (b'{"rate": 1}', "There is no setting 'rate'"),
        (None, "missing"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, sentence):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        PretrainConfig.read(path)


def test_the_presets_are_valid_and_others_are_answered_with_their_names():
    for name in PRESETS:
        PretrainConfig.from_dict(pretrain_preset(name))
    with pytest.raises(DinovizError, match=r"There is no preset 'huge'\. Known are .*\."):
        pretrain_preset("huge")
