"""The page: checks around every handler."""

from __future__ import annotations

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.context import LocalContext

from dinoviz.errors import DinovizError
from dinoviz.ui.guard import check_click, check_value, file_paths, own_files, refusal, sendable, takes_click
from dinoviz.ui.shared import user_errors
from dinoviz.ui.temporary_files import TemporaryFiles


class Page(gr.Blocks):
    """Blocks whose endpoints check their inputs, and answer with one sentence where something is wrong.

    Gradio checks the place of a file only in data that is marked as a file; a client that omits the mark could name
    any file of the machine. Here every path in any input, however nested, has to be a file of this session.
    """

    def __init__(self, *args, files: TemporaryFiles, **options):
        self.files = files
        super().__init__(*args, **options)

    async def process_api(self, block_fn, inputs, state=None, request=None, *, event_data=None, **options):
        """As Gradio's, with event_data, the data of a click, checked first."""
        # Gradio sets it during the handler only; the owner of files is needed before and after it too.
        LocalContext.request.set(request)
        if takes_click(self.fns[block_fn] if isinstance(block_fn, int) else block_fn):
            check_click(getattr(event_data, "_data", None))
        with user_errors():
            try:
                return await super().process_api(block_fn, inputs, state, request, event_data=event_data, **options)
            except Exception as error:
                # Wrapped by Gradio where a component raised it, reading and writing its files.
                if isinstance(error.__cause__, OSError | DinovizError):
                    raise error.__cause__ from None
                raise

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list, state, explicit_call: bool = False):
        """As Gradio's, of checked inputs. Raises gr.Error or NotYours with one sentence."""
        if len(inputs) < len(block_fn.inputs):
            raise refusal(f"{len(block_fn.inputs)} inputs are needed, not {len(inputs)}.")
        props = block_fn.component_prop_inputs
        for i, (block, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
            check_value(block, value.get("value") if i in props and isinstance(value, dict) else value)
        session = self._session()
        inputs = [own_files(value, lambda path: self.files.own(path, session)) for value in inputs]
        try:
            # explicit_call skips Gradio's check, which takes the folder of the newest page; the one above is stricter.
            return await super().preprocess_data(block_fn, inputs, state, explicit_call=True)
        except gr.Error as error:  # Gradio's own, of an unknown choice: not worth a stack trace
            raise refusal(str(error.message)) from None

    async def postprocess_data(self, block_fn: BlockFunction, predictions, state):
        """As Gradio's; the session may use the files that it is sent."""
        data = await super().postprocess_data(block_fn, predictions, state)
        self.files.made(file_paths(data), self._session())
        return sendable(data)

    def get_config_file(self) -> dict:
        """As Gradio's, made sendable."""
        return sendable(super().get_config_file())

    def _session(self) -> str | None:
        """The session of the running request; None where the client gave none and Gradio generated one for the call."""
        session = getattr(LocalContext.request.get(None), "session_hash", None)
        return None if session in self._queue.event_ids_to_events else session
