"""What every endpoint of the page passes: files that are the session's own, and values of the right type."""

from __future__ import annotations

import html
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.context import LocalContext

from dinoviz.ui.temporary_files import NotYours, TemporaryFiles

MAX_FILES = 2000  # of one field
MAX_DEPTH = 32  # of lists and objects in one value
MAX_TEXT = 2_000_000  # characters of one value: the marks of a long session


class Live:
    """Of a choice whose list changes: it may be empty, and its handlers check what was chosen."""


Check = Callable[[gr.components.Component, Any], bool]


class GuardedBlocks(gr.Blocks):
    """A page whose endpoints take only what they expect.

    Gradio checks where a file lies only for data that is marked as a file; a client that leaves the mark away could
    name any file of the machine. Here every name of a file, in any input and however nested, has to be one that this
    session was given.
    """

    def __init__(self, *args, files: TemporaryFiles, **options):
        self.files = files
        super().__init__(*args, **options)

    async def process_api(self, block_fn, inputs, state=None, request=None, *, event_data=None, **options):
        """As Gradio's; event_data: what a click says of itself, is checked first."""
        # Gradio sets it for the handler alone; whose files are made and used is asked before and after it, too.
        LocalContext.request.set(request)
        if takes_click(self.fns[block_fn] if isinstance(block_fn, int) else block_fn):
            check_click(getattr(event_data, "_data", None))
        return await super().process_api(block_fn, inputs, state, request, event_data=event_data, **options)

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list, state, explicit_call: bool = False):
        """As Gradio's, of inputs that are checked. Raises gr.Error with one sentence."""
        if len(inputs) < len(block_fn.inputs):
            raise refusal(f"{len(block_fn.inputs)} inputs are needed, not {len(inputs)}.")
        props = block_fn.component_prop_inputs
        for i, (block, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
            check_value(block, value.get("value") if i in props and isinstance(value, dict) else value)
        session = self._session()
        try:
            inputs = [own_files(value, lambda path: self.files.own(path, session)) for value in inputs]
        except NotYours as error:
            raise refusal(str(error)) from None
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:  # Gradio's own, of a choice that is none: nothing for the log
            raise refusal(str(error.message)) from None

    async def postprocess_data(self, block_fn: BlockFunction, predictions, state):
        """As Gradio's; the session may use what it is given."""
        data = await super().postprocess_data(block_fn, predictions, state)
        self.files.made(file_paths(data), self._session())
        return data

    def _session(self) -> str | None:
        """The session of the running request; None where the client gave none and Gradio made one up for this call."""
        session = getattr(LocalContext.request.get(None), "session_hash", None)
        return None if session in self._queue.event_ids_to_events else session


def refusal(sentence: str) -> gr.Error:
    """An error that is shown and sent as one sentence, without a stack trace in the log."""
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)


def own_files(value: Any, own: Callable[[str], str]) -> Any:
    """The same value; of each file in it only its checked path and its name remain. Raises what `own` raises."""
    if isinstance(value, list):
        return [own_files(item, own) for item in value]
    if not isinstance(value, dict):
        return value
    if "path" not in value and "url" not in value:
        return {key: own_files(item, own) for key, item in value.items()}
    path, url, name = value.get("path"), value.get("url"), value.get("orig_name")
    # A picture of the webcam or the clipboard comes in the request itself.
    inline = isinstance(url, str) and url.startswith("data:image/")
    if isinstance(path, str) and path and not inline:
        checked = {"path": own(path), "url": None}
    elif inline and not path:
        checked = {"path": None, "url": url}
    else:
        raise NotYours("A file is given by the path that its upload was answered with.")
    name = name if isinstance(name, str) else None
    return checked | {"orig_name": name, "meta": {"_type": "gradio.FileData"}}


def file_paths(value: Any) -> Iterator[str]:
    """The paths of all files in what is sent to a page."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for item in value.values():
            yield from file_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from file_paths(item)


def check_value(block: gr.components.Component, value: Any) -> None:
    """Raises gr.Error unless the value is of the type that the component sends."""
    if block.stateful:  # the page's own state; what a client sends for it is not used
        return
    label = getattr(block, "label", None) or type(block).__name__
    if not is_bounded(value):
        raise refusal(f"{label}: the value is too long or too deeply nested.")
    for kind, (wanted, fits) in CHECKS.items():
        if isinstance(block, kind):
            if not fits(block, value):
                raise refusal(f"{label}: {wanted} is expected, not {short(value)}.")
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
    """Whether the handler is told what was clicked."""
    if block_fn.fn is None:  # JavaScript alone
        return False
    parameters = inspect.signature(block_fn.fn).parameters.values()
    return any(parameter.annotation in (gr.SelectData, "gr.SelectData") for parameter in parameters)


def check_click(data: Any) -> None:
    """Raises gr.Error unless it is what the page says of a click: an index, or the two of a place in a picture."""
    index = data.get("index") if isinstance(data, dict) and "value" in data else None
    place = isinstance(index, list) and len(index) == 2 and all(map(is_number, index))
    if not (place or isinstance(index, str) or (is_number(index) and index >= 0)):
        raise refusal("A click says where it was: index, a number or [x, y], and value.")


def is_number(value: Any) -> bool:
    """A finite number that arithmetic can be done with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def short(value: Any) -> str:
    """What was given, in a few words."""
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
    # Nothing is chosen only where nothing was at first, or where the list may have become empty.
    return isinstance(value, str) or (value is None and (block.value is None or isinstance(block, Live)))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# What each kind of component sends; the first that fits decides.
CHECKS: dict[type, tuple[str, Check]] = {
    gr.File: ("an uploaded file", _files),
    gr.Image: ("an uploaded picture", lambda _, value: _file(value)),
    gr.Slider: ("a number", lambda _, value: is_number(value)),
    gr.Number: ("a number", lambda _, value: value is None or is_number(value)),
    gr.Checkbox: ("true or false", lambda _, value: isinstance(value, bool)),
    gr.CheckboxGroup: ("a list", lambda _, value: _texts(value)),
    gr.Radio: ("one of the choices", _choice),
    gr.Dropdown: ("one of the choices", _choice),
    gr.Textbox: ("a text", lambda _, value: value is None or isinstance(value, str)),
    gr.BrowserState: ("a text", lambda _, value: value is None or isinstance(value, str)),
    gr.HTML: ("a text", lambda _, value: value is None or isinstance(value, str)),
    gr.Dataset: ("the number of an example", lambda block, value: value in range(len(block.raw_samples))),
}
