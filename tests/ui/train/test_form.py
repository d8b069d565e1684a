"""The form has a component for each setting, reads and writes the settings, and refuses wrong values by name."""

import dataclasses
import warnings

import gradio as gr
import pytest

from dinoviz.errors import DinovizError
from dinoviz.ui.train.form import ELSEWHERE, Form
from tests.training.tiny_runs import refused
from training.config.base import Config, ConfigError, setting
from training.config.cli import KINDS
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset

NONSENSE = (None, "abc", "", float("1e400"), float("-inf"), float("nan"), -1, 10**400, "1 2 3 4 5 6 7", [], {}, True)
PRESETS_OF = [("pretrain", name) for name in PRESETS] + [(kind, "") for kind in KINDS]


@pytest.fixture(scope="module")
def forms() -> dict[str, Form]:
    with gr.Blocks():
        return {kind: Form(config, {}, f"test-{kind}") for kind, config in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_setting_has_one_component(kind, forms):
    form = forms[kind]
    names = [field.name for field in dataclasses.fields(KINDS[kind]) if field.name not in ELSEWHERE]
    assert sorted(form.names) == sorted(names)
    assert len(form.parts) == len(form.names)
    assert len({part.elem_id for part in form.parts}) == len(names)
    for part in form.parts:
        assert part.label
        assert part.info


def test_settings_of_other_parts_exist():
    known = {field.name for config in KINDS.values() for field in dataclasses.fields(config)}
    assert set(ELSEWHERE) <= known


@pytest.mark.parametrize("kind", KINDS)
def test_the_knobs_come_first(kind, forms):
    knobs = [f.name for f in dataclasses.fields(KINDS[kind]) if f.metadata["knob"] and f.name not in ELSEWHERE]
    assert forms[kind].names[: len(knobs)] == knobs


def over_the_page(form: Form, values: list) -> list:
    """Values as they come back from a browser that was sent them."""
    with warnings.catch_warnings(action="error"):  # Gradio only warns of a value that is no choice
        return [part.preprocess(part.postprocess(value)) for part, value in zip(form.parts, values, strict=True)]


@pytest.mark.parametrize(("kind", "preset"), PRESETS_OF)
def test_settings_come_back_as_they_were_shown(kind, preset, forms):
    form, values = forms[kind], pretrain_preset(preset) if preset else {}
    assert KINDS[kind].from_dict(form.read(over_the_page(form, form.write(values)))) == KINDS[kind].from_dict(values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_values_are_the_defaults(kind, forms):
    form = forms[kind]
    assert [part.value for part in form.parts] == form.write({})


def test_other_values_at_first(forms):
    with gr.Blocks():
        form = Form(PretrainConfig, pretrain_preset("small"), "test-small")
    assert [part.value for part in form.parts] == form.write(pretrain_preset("small"))


def test_odd_numbers_come_back_exactly(forms):
    values = {"lr": 1.23456789012e-5, "mask_ratio": (0.123456789, 1 / 3), "blur": (1.0, 0.0, 0.5), "seed": 2**31 - 1}
    form = forms["pretrain"]
    config = PretrainConfig.from_dict(form.read(over_the_page(form, form.write(values))))
    assert config.lr == values["lr"]
    assert config.mask_ratio == pytest.approx(values["mask_ratio"], abs=1e-15)
    assert (config.blur, config.seed) == (values["blur"], values["seed"])


@pytest.mark.parametrize("typed", ["0.1 0.5", "0.1, 0.5", " 0.1 ,0.5 ", "1e-1\t.5"])
def test_lists_may_have_commas(typed, forms):
    form = forms["pretrain"]
    values = form.write({})
    values[form.names.index("mask_ratio")] = typed
    assert form.read(values)["mask_ratio"] == (0.1, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_list_may_be_empty(kind, forms):
    form = forms[kind]
    values = form.write({})
    lists = [i for i, name in enumerate(form.names) if isinstance(getattr(KINDS[kind](), name), tuple)]
    assert lists
    for i in lists:
        for nothing in ("", " , "):
            error = refused(ConfigError, form.read, [*values[:i], nothing, *values[i + 1 :]])
            assert form.names[i].replace("_", " ") in error


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_is_refused_by_name(kind, forms):
    form = forms[kind]
    good = form.write({})
    errors = 0
    for i, name in enumerate(form.names):
        for nonsense in NONSENSE:
            values = [*good[:i], nonsense, *good[i + 1 :]]
            try:
                KINDS[kind].from_dict(form.read(values))  # some are right for some settings: -1 is the last layer
            except DinovizError:
                text = refused(ConfigError, lambda v=values: KINDS[kind].from_dict(form.read(v)))
                assert name in text.replace(" ", "_"), (name, nonsense, text)
                errors += 1
    assert errors > 8 * len(form.names)


def test_a_new_setting_needs_no_change_of_the_form():
    @dataclasses.dataclass(frozen=True)
    class Other(Config):
        data: tuple[str, ...] = setting((), "elsewhere", group="data")
        size: int = setting(3, "a number", group="one", knob=True)
        name: str = setting("x", "a text", group="one")
        on: bool = setting(False, "a switch", group="two")
        some: tuple[int, ...] = setting((1, 2), "several", group="two")

    with gr.Blocks():
        form = Form(Other, {"size": 5}, "test-other")
    assert form.names == ["size", "name", "on", "some"]
    assert [type(part) for part in form.parts] == [gr.Number, gr.Textbox, gr.Checkbox, gr.Textbox]
    assert form.read([7, None, True, "3"]) == {"size": 7, "name": "", "on": True, "some": (3,)}
