"""Checks of every value that a client sends: only files of its own session, and only values of the right type."""

from __future__ import annotations

import html
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction

from dinoviz.ui.temporary_files import NotYours

MAX_FILES = 2000  # of one field
MAX_DEPTH = 32  # of lists and objects in one value
MAX_TEXT = 2_000_000  # characters of one value: the marks of a long session


class Live:
    """Marks a component whose choices change: its value may be empty, and its handlers check it."""


Check = Callable[[gr.components.Component, Any], bool]


def refusal(sentence: str) -> gr.Error:
    """An error that is sent as one sentence, without a stack trace in the log."""
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)


def own_files(value: Any, own: Callable[[str], str]) -> Any:
    """The value with each file in it reduced to its checked path and its name. Raises what `own` raises."""
    if isinstance(value, list):
        return [own_files(item, own) for item in value]
    if not isinstance(value, dict):
        return value
    if "path" not in value and "url" not in value:
        return {key: own_files(item, own) for key, item in value.items()}
    path, url, name = value.get("path"), value.get("url"), value.get("orig_name")
    # A picture from the webcam or the clipboard is in the request itself.
    inline = isinstance(url, str) and url.startswith("data:image/")
    if isinstance(path, str) and path and not inline:
        checked = {"path": own(path), "url": None}
    elif inline and not path:
        checked = {"path": None, "url": url}
    else:
        raise NotYours("A file is given by the path that its upload returned.")
    name = name if isinstance(name, str) else None
    return checked | {"orig_name": name, "meta": {"_type": "gradio.FileData"}}


def file_paths(value: Any) -> Iterator[str]:
    """Yield the paths of all files in a value that is sent to a page."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for item in value.values():
            yield from file_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from file_paths(item)


def sendable(value: Any) -> Any:
    """The value with characters that are not UTF-8 escaped, as a file's name may have them.

    A single such name would keep the whole answer from being sent.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if type(value) is dict:
        return {sendable(key): sendable(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(sendable, value))
    return value


def check_value(block: gr.components.Component, value: Any) -> None:
    """Raises gr.Error unless the value is of the type that the component sends."""
    if block.stateful:  # the server's own state; a value that a client sends is not used
        return
    label = getattr(block, "label", None) or type(block).__name__
    if not is_bounded(value):
        raise refusal(f"{label}: the value is too long or too deeply nested.")
    for kind, (expected, fits) in CHECKS.items():
        if isinstance(block, kind):
            if not fits(block, value):
                raise refusal(f"{label}: {expected} is expected, not {short(value)}.")
            return


def is_bounded(value: Any) -> bool:
    """Whether no list or object is deeper than MAX_DEPTH and no text longer than MAX_TEXT; without recursion."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH or (isinstance(item, str) and len(item) > MAX_TEXT and not item.startswith("data:image/")):
            return False
        if isinstance(item, dict):
            waiting += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            waiting += [(inner, depth + 1) for inner in item]
    return True


def takes_click(block_fn: BlockFunction) -> bool:
    """Whether the handler has a parameter for what was clicked."""
    if block_fn.fn is None:  # JavaScript alone
        return False
    parameters = inspect.signature(block_fn.fn).parameters.values()
    return any(parameter.annotation in (gr.SelectData, "gr.SelectData") for parameter in parameters)


def check_click(data: Any) -> None:
    """Raises gr.Error unless the data of a click has an index: a number, a text, or the [x, y] of a picture."""
    index = data.get("index") if isinstance(data, dict) and "value" in data else None
    place = isinstance(index, list) and len(index) == 2 and all(map(is_number, index))
    if not (place or isinstance(index, str) or (is_number(index) and index >= 0)):
        raise refusal("A click needs an index, a number or [x, y], and a value.")


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def short(value: Any) -> str:
    """The value in a few words, for an error."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return {type(None): "nothing", dict: "an object", list: "a list"}.get(type(value)) or repr(value)[:60]


def _file(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and "path" in value)


def _files(block: gr.File, value: Any) -> bool:
    if isinstance(value, list):
        return block.file_count != "single" and len(value) <= MAX_FILES and all(map(_file, value)) and None not in value
    return _file(value)


def _choice(block: gr.Dropdown | gr.Radio, value: Any) -> bool:
    if getattr(block, "multiselect", None):
        return value is None or _texts(value)
    # None is a value only where it was the first one, or where the list may have become empty.
    return isinstance(value, str) or (value is None and (block.value is None or isinstance(block, Live)))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# The expected values of each kind of component, in words and as a check; the first kind that fits decides.
CHECKS: dict[type, tuple[str, Check]] = {
    gr.File: ("an uploaded file", _files),
    gr.Image: ("an uploaded picture", lambda _, value: _file(value)),
    gr.Slider: ("a number", lambda _, value: is_number(value)),
    gr.Number: ("a number", lambda _, value: value is None or is_number(value)),
    gr.Checkbox: ("true or false", lambda _, value: isinstance(value, bool)),
    gr.CheckboxGroup: ("a list", lambda _, value: _texts(value)),
    gr.Radio: ("one of the choices", _choice),
    gr.Dropdown: ("one of the choices", _choice),
    gr.Textbox: ("a text", lambda block, value: isinstance(value, str) or (value is None and block.value is None)),
    gr.BrowserState: ("a text", lambda _, value: value is None or isinstance(value, str)),
    gr.HTML: ("a text", lambda _, value: value is None or isinstance(value, str)),
    gr.Dataset: ("the number of an example", lambda block, value: value in range(len(block.raw_samples))),
}
