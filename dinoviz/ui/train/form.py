"""The settings of a kind of run as components, made from its dataclass: a new setting needs no change here."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

import gradio as gr

from dinoviz.ui.shared import LiveDropdown
from training.config.base import Config, ConfigError, shortened

# Settings that other parts of the tab, or the machine, decide.
ELSEWHERE = (
    *("data", "validation", "test", "start", "model", "teacher", "probe_images"),
    *("device", "memory_gb", "workers", "store_size", "limit"),
)


class Form:
    """Components for the settings of a config: the knobs visible, all others folded, by group.

    They are created with the form. names: of the settings, in the order of `parts`.
    """

    def __init__(self, config: type[Config], values: dict[str, Any], elem_id: str):
        """values: first values that are not the defaults."""
        self.config = config
        self._hints = get_type_hints(config)
        self._fields = {f.name: f for f in dataclasses.fields(config) if f.name not in ELSEWHERE}
        made: dict[str, gr.Component] = {}
        knobs = [field for field in self._fields.values() if field.metadata["knob"]]
        with gr.Row():
            for field in knobs:
                made[field.name] = self._part(field, values, elem_id)
        with gr.Accordion("All other settings", open=False, elem_id=f"{elem_id}-rest"):
            for group in dict.fromkeys(field.metadata["group"] for field in self._fields.values()):
                rest = [f for f in self._fields.values() if f.metadata["group"] == group and f not in knobs]
                if rest:
                    gr.HTML(f'<div class="dv-title-of">{group}</div>', padding=False)
                    with gr.Row():
                        for field in rest:
                            made[field.name] = self._part(field, values, elem_id)
        self.names = list(made)
        self.parts = list(made.values())

    def read(self, values: list) -> dict[str, Any]:
        """The settings by name, from the values of the components. Raises ConfigError for a value of a wrong type."""
        return {name: self._value(name, value) for name, value in zip(self.names, values, strict=True)}

    def write(self, values: dict[str, Any]) -> list:
        """The values of the components for these settings, and the defaults for all others."""
        config = self.config.from_dict(values)
        return [self._shown(name, getattr(config, name)) for name in self.names]

    def _part(self, field: dataclasses.Field, values: dict[str, Any], elem_id: str) -> gr.Component:
        value, about = values.get(field.name, field.default), field.metadata
        options = {
            "label": field.name.replace("_", " "),
            "info": about["help"],
            "elem_id": f"{elem_id}-{field.name.replace('_', '-')}",
            "min_width": 190,
        }
        if isinstance(value, bool):
            return gr.Checkbox(value, **options)
        if about["choices"]:
            return LiveDropdown([str(choice) for choice in about["choices"]], value=str(value), **options)
        if isinstance(value, int | float):
            return gr.Number(value, precision=0 if self._hints[field.name] is int else None, **options)
        return gr.Textbox(self._shown(field.name, value), lines=1, max_lines=1, **options)

    def _value(self, name: str, value: Any) -> Any:
        hint = self._hints[name]
        several = get_origin(hint) is tuple
        kind = get_args(hint)[0] if several else hint
        if kind not in (bool, str) and (value is None or (several and not str(value).strip(" ,"))):
            raise ConfigError(f"{name.replace('_', ' ')} is empty: it needs a number.")
        if kind in (bool, str) and not several:
            return "" if value is None and kind is str else value
        words = str(value).replace(",", " ").split() if several else [value]
        try:
            numbers = tuple(kind(word) for word in words)
        except (TypeError, ValueError, OverflowError):
            expected = "numbers with spaces between them" if several else "a number"
            raise ConfigError(f"{name.replace('_', ' ')} needs {expected}, not {shortened(value)}.") from None
        return numbers if several else numbers[0]

    def _shown(self, name: str, value: Any) -> Any:
        """A setting as the value of its component."""
        if isinstance(value, tuple):
            return " ".join(f"{one:.15g}" for one in value)
        return str(value) if self._fields[name].metadata["choices"] else value
