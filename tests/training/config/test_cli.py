"""The command that the page shows does what the page does: it is parsed back into the same settings."""

import dataclasses
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.__main__ import _parser
from training.config.cli import KINDS, command_line, settings_of
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset


def parsed(kind: str, command: str):
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "training", kind]
    options = _parser().parse_args(words[3:])
    preset = getattr(options, "preset", None)
    return options, settings_of(options, KINDS[kind], pretrain_preset(preset) if preset else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", ["it's here/my photos", "photos"])
def test_all_settings_come_back(kind, data):
    cls = KINDS[kind]
    values = {"data": data if kind == "probe" else (data, "b.zip")}
    for field in dataclasses.fields(cls):
        default = getattr(cls(), field.name)
        if isinstance(default, bool):
            values[field.name] = not default
        elif field.metadata["choices"]:
            values[field.name] = field.metadata["choices"][-1]
    config = dataclasses.replace(cls(), **values)
    options, back = parsed(kind, command_line(kind, config, name="mine"))
    assert back == config
    assert options.name == "mine"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_and_not_spelt_out(preset):
    config = PretrainConfig(**pretrain_preset(preset) | {"lr": 0.00123456789, "blur": (0.5, 0.25, 0.125)})
    command = command_line("pretrain", config, preset=preset)
    assert command == f"python -m training pretrain --demo --preset {preset} --blur 0.5 0.25 0.125 --lr 0.00123456789"
    options, back = parsed("pretrain", command)
    assert back == config
    assert options.demo


def test_a_schedule_that_is_fitted_in_place_of_the_presets_comes_back():
    config = PretrainConfig(**pretrain_preset("quarter-hour") | {"warmup_epochs": -1.0})
    command = command_line("pretrain", config, preset="quarter-hour")
    assert parsed("pretrain", command)[1] == config


@given(st.floats(1e-6, 1.0), st.integers(1, 500))
def test_numbers_come_back_exactly(lr, batch):
    config = PretrainConfig(lr=lr, batch=batch)
    assert parsed("pretrain", command_line("pretrain", config))[1] == config


def test_data_may_be_called_otherwise():
    config = PretrainConfig(data=("/cache/1f/photos.zip",))
    assert command_line("pretrain", config, data=["photos.zip"]) == "python -m training pretrain photos.zip"
