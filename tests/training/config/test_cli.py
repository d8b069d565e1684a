"""Settings survive the way to the command line and back, and former names of settings keep working."""

import dataclasses
import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.__main__ import _parser
from training.config.base import RENAMED
from training.config.cli import KINDS, command_line, settings_of
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset
from training.runs.run import Run


def parsed(kind: str, command: str):
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "training", kind]
    options = _parser().parse_args(words[3:])
    preset = getattr(options, "preset", None)
    return options, settings_of(options, KINDS[kind], pretrain_preset(preset) if preset else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", ["it's here/my photos", "photos"])
def test_the_command_line_of_a_configuration_parses_back_to_it(kind, data):
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
def test_the_command_line_names_the_preset_and_what_differs(preset):
    config = PretrainConfig(**pretrain_preset(preset) | {"lr": 0.00123456789, "blur": (0.5, 0.25, 0.125)})
    command = command_line("pretrain", config, preset=preset)
    assert command == f"python -m training pretrain --demo --preset {preset} --blur 0.5 0.25 0.125 --lr 0.00123456789"
    options, back = parsed("pretrain", command)
    assert back == config
    assert options.demo


def test_a_schedule_of_the_preset_that_was_set_back_to_auto_parses_back():
    config = PretrainConfig(**pretrain_preset("quarter-hour") | {"warmup_epochs": -1.0})
    command = command_line("pretrain", config, preset="quarter-hour")
    assert parsed("pretrain", command)[1] == config


@settings(deadline=None)  # another process may take the core
@given(st.floats(1e-6, 1.0), st.integers(1, 500))
def test_numbers_parse_back_exactly(lr, batch):
    config = PretrainConfig(lr=lr, batch=batch)
    assert parsed("pretrain", command_line("pretrain", config))[1] == config


def test_the_command_line_can_name_the_data_differently():
    config = PretrainConfig(data=("/cache/1f/photos.zip",))
    assert command_line("pretrain", config, data=["photos.zip"]) == "python -m training pretrain photos.zip"


OLD_SETTINGS = [
    (kind, old, new)
    for old, new in RENAMED.items()
    for kind, cls in KINDS.items()
    if new in {field.name for field in dataclasses.fields(cls)}
]


@pytest.mark.parametrize(("kind", "old", "new"), OLD_SETTINGS)
def test_former_names_of_settings_work_everywhere_and_are_hidden(kind, old, new, tmp_path, capsys):
    cls = KINDS[kind]
    value = next(each for each in dataclasses.fields(cls) if each.name == new).metadata["choices"][-1]
    expected = cls(**{new: value})
    assert cls.from_dict({old: value}) == expected
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"kind": kind, old: value}))
    assert cls.read(file) == {new: value}
    (run := tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (run.parent / "config.json").write_text(file.read_text())
    (run.parent / "status.json").write_text('{"state": "stopped"}')
    assert Run(run.parent).problem() is None
    option = f"--{old.replace('_', '-')}"
    for arguments in ([option, value], ["--config", str(file)]):
        assert settings_of(_parser().parse_args([kind, "--demo", *arguments]), cls) == expected
    with pytest.raises(SystemExit):
        _parser().parse_args([kind, "--help"])
    assert f"{option} " not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        _parser().parse_args([kind, option, "nonsense"])
