"""The page as a whole: what every handler of it, and every component, shares."""

from __future__ import annotations

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.context import LocalContext

from dinoviz.errors import DinovizError
from dinoviz.ui.guard import check_click, check_value, file_paths, own_files, refusal, sendable, takes_click
from dinoviz.ui.shared import told
from dinoviz.ui.temporary_files import TemporaryFiles


class Page(gr.Blocks):
    """Blocks whose endpoints take only what they expect, and say in one sentence what went wrong.

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
        with told():
            try:
                return await super().process_api(block_fn, inputs, state, request, event_data=event_data, **options)
            except Exception as error:
                # Wrapped by Gradio where a component raised it, reading and writing its files.
                if isinstance(error.__cause__, OSError | DinovizError):
                    raise error.__cause__ from None
                raise

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list, state, explicit_call: bool = False):
        """As Gradio's, of inputs that are checked. Raises gr.Error or NotYours, each with one sentence."""
        if len(inputs) < len(block_fn.inputs):
            raise refusal(f"{len(block_fn.inputs)} inputs are needed, not {len(inputs)}.")
        props = block_fn.component_prop_inputs
        for i, (block, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
            check_value(block, value.get("value") if i in props and isinstance(value, dict) else value)
        session = self._session()
        inputs = [own_files(value, lambda path: self.files.own(path, session)) for value in inputs]
        try:
            # Gradio would ask whether files lie in the folder of the process's newest page; what is above is stricter.
            return await super().preprocess_data(block_fn, inputs, state, explicit_call=True)
        except gr.Error as error:  # Gradio's own, of a choice that is none: nothing for the log
            raise refusal(str(error.message)) from None

    async def postprocess_data(self, block_fn: BlockFunction, predictions, state):
        """As Gradio's; the session may use what it is given."""
        data = await super().postprocess_data(block_fn, predictions, state)
        self.files.made(file_paths(data), self._session())
        return sendable(data)

    def get_config_file(self) -> dict:
        """As Gradio's, of the whole page."""
        return sendable(super().get_config_file())

    def _session(self) -> str | None:
        """The session of the running request; None where the client gave none and Gradio made one up for this call."""
        session = getattr(LocalContext.request.get(None), "session_hash", None)
        return None if session in self._queue.event_ids_to_events else session
