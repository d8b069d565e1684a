"""Use of a trained run: its classifier's prediction, a download, an upload to the Hugging Face Hub."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.models import weights_stamp
from dinoviz.ui.access import opened
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, bundle, download, note, user_errors
from dinoviz.ui.train.run_list import pathless
from dinoviz.ui.workbench import Workbench
from training.classifier.model import open_classifier, predict
from training.publish import hub
from training.publish.model_card import hub_card
from training.runs.run import Run, RunError

TOP = 5
# In the environment of a Space with `hf_oauth: true` in its README; Gradio's login needs them.
LOGIN = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
CLASSIFIER_BYTES = 2**28  # of a prediction: about those of a ViT-B at 384 px


@dataclass(frozen=True, eq=False)
class HubControls:
    """The components of the upload to the Hub."""

    repository: gr.Textbox
    private: gr.Checkbox
    secret: gr.Textbox
    push: gr.Button
    result: gr.HTML


@dataclass(frozen=True, eq=False)
class Controls:
    """The components. press: the JavaScript that hands the file to the browser. hub: None where it is not offered."""

    answer: gr.Label
    answer_note: gr.HTML
    file_button: gr.Button
    file: gr.DownloadButton
    press: str
    hub: HubControls | None


def layout(public: bool) -> Controls:
    """Create the components."""
    login = has_login()
    with gr.Row():
        with gr.Column(min_width=280):
            answer = gr.Label(
                label="The classifier's prediction for the picture above", visible=False, num_top_classes=TOP,
                elem_id="train-answer",
            )  # fmt: skip
            answer_note = gr.HTML("", label="answer", elem_id="train-answer-note", padding=False)
        with gr.Column(min_width=280):
            button, file, press = download("train-file", "Download the network")
            hub_controls = _layout_hub(login) if login or not public else None
    return Controls(answer, answer_note, button, file, press, hub_controls)


def _layout_hub(login: bool) -> HubControls:
    with gr.Accordion("Upload to the Hugging Face Hub", open=False, elem_id="train-hub"):
        if login:
            gr.LoginButton(size="sm")
        repository = gr.Textbox(
            label="Repository", info="owner/name; created if it does not exist", max_lines=1, elem_id="train-hub-name"
        )
        secret = gr.Textbox(
            label="Your token", info="with write access; used once and not stored", type="password",
            elem_id="train-hub-token", visible=not login,
        )  # fmt: skip
        private = gr.Checkbox(True, label="Private", elem_id="train-hub-private")
        push = gr.Button("Upload", size="sm", elem_id="train-hub-push")
        result = gr.HTML(note(""), label="upload", elem_id="train-hub-said")
    return HubControls(repository, private, secret, push, result)


def wire(
    controls: Controls, bench: Workbench, bar: Bar, chosen: gr.Radio, network: gr.State, token: gr.BrowserState
) -> None:
    """Connect the events. network: changes when the chosen run has another network."""
    c, handlers = controls, _Handlers(bench)
    gr.on(
        [chosen.change, bar.image.change, network.change], handlers.classify, [token, chosen, bar.image],
        [c.answer, c.answer_note], **PRIVATE,
    )  # fmt: skip
    c.file_button.click(handlers.download_run, [token, chosen], c.file, **ONCE).success(None, js=c.press)
    if c.hub:
        # Gradio requires a login where a handler has such a parameter, which only a Space can have.
        upload = handlers.upload_logged_in if has_login() else handlers.upload
        inputs = [token, chosen, c.hub.repository, c.hub.private, c.hub.secret]
        c.hub.push.click(upload, inputs, [c.hub.result, c.hub.secret], **ONCE)


class _Handlers:
    def __init__(self, bench: Workbench):
        self.bench, self.public = bench, bench.settings.public

    def classify(self, token: str, chosen: str | None, image: str | None):
        """The prediction of a fine-tuned run for the picture above; nothing for other runs."""
        try:
            run = opened(chosen, self.public, token)
            if run.kind != "finetune" or not run.networks() or not image:
                return gr.Label(visible=False), ""
            found = _predict(self.bench, run, image)
        except DinovizError as error:
            words = note(html.escape(pathless(str(error), self.public)), "caption dv-error") if chosen else ""
            return gr.Label(visible=False), words
        return gr.Label(dict(found), visible=True), note("Prediction of this run's classifier on a centre crop.")

    def download_run(self, token: str, chosen: str | None) -> str:
        """A zip of the run's network."""
        with user_errors():
            run = opened(chosen, self.public, token)
            return bundle(run.name, _files(run), {"run": run.name, "kind": run.kind, "config": run.config})

    def upload(self, token: str, chosen: str | None, repository: str, private: bool, secret: str):
        """Upload the run's network with a token, which is removed from the page."""
        try:
            address = hub.push(opened(chosen, self.public, token), repository or "", secret or "", private=private)
        except DinovizError as error:
            return note(html.escape(str(error)), "caption dv-error"), ""
        return note(f'Uploaded to <a href="{html.escape(address)}">{html.escape(address)}</a>.'), ""

    def upload_logged_in(
        self, token: str, chosen: str | None, repository: str, private: bool, secret: str, login: gr.OAuthToken | None
    ):
        """The same with the login of a Space."""
        if login is None:
            return note("Log in first: the upload needs write access.", "caption dv-error"), ""
        return self.upload(token, chosen, repository, private, login.token)


def has_login() -> bool:
    """Whether users can log in with their Hugging Face account, which a Space has to enable."""
    return "SPACE_ID" in os.environ and all(map(os.environ.get, LOGIN))


def _predict(bench: Workbench, run: Run, image: str) -> list[tuple[str, float]]:
    stamp = weights_stamp(str(run.folder))
    classifier = bench.derived(("classifier", str(run.folder), stamp), lambda: open_classifier(run.folder))
    picture = bench.picture(image).image
    with bench.turn(CLASSIFIER_BYTES):
        return predict(classifier, [picture], top=TOP)[0]


def _files(run: Run) -> list[tuple[str, bytes]]:
    """The files of the run's exported network, with its card."""
    folder = run.export_folder
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise RunError(f"{run.name} has no network yet: it has one after its first checkpoint.")
    return [("README.md", hub_card(run).encode()), *((path.name, path.read_bytes()) for path in files)]
