"""What is done with a trained run: ask its classifier, download it, put it on the Hugging Face Hub."""

from __future__ import annotations

import html
import os

import gradio as gr

from dinoviz.errors import DinovizError
from dinoviz.models import weights_stamp
from dinoviz.ui.access import opened
from dinoviz.ui.image_bar import Bar
from dinoviz.ui.shared import ONCE, PRIVATE, bundle, download, note, told
from dinoviz.ui.train.run_list import pathless
from dinoviz.ui.workbench import Workbench
from training.classifier.model import open_classifier, predict
from training.publish import hub
from training.publish.model_card import hub_card
from training.runs.run import Run, RunError

TOP = 5
# What a Space has in its environment if its README says `hf_oauth: true`; Gradio's login does not start without.
LOGIN = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
CLASSIFIER_BYTES = 2**28  # of its answer: one small square, about what a ViT-B takes for 384 px


def build(bench: Workbench, bar: Bar, chosen: gr.Radio, ripe: gr.State, token: gr.BrowserState) -> None:
    """Lay out these parts and wire them. ripe: changes when the chosen run has another network."""
    public, login = bench.settings.public, _has_login()
    with gr.Row():
        with gr.Column(min_width=280):
            answer = gr.Label(
                label="What the classifier says of the picture above", visible=False, num_top_classes=TOP,
                elem_id="train-answer",
            )  # fmt: skip
            answer_note = gr.HTML("", label="answer", elem_id="train-answer-note", padding=False)
        with gr.Column(min_width=280):
            file_button, file, press = download("train-file", "Download the network")
            hub_parts = _hub(login) if login or not public else None

    def classify(token: str, folder: str | None, image: str | None):
        """What a fine-tuned run says of the picture above; nothing for other runs."""
        try:
            run = opened(folder, public, token)
            if run.kind != "finetune" or not run.networks() or not image:
                return gr.Label(visible=False), ""
            found = _ask(bench, run, image)
        except DinovizError as error:
            return gr.Label(visible=False), note(
                html.escape(pathless(str(error), public)), "caption dv-error"
            ) if folder else ""
        return gr.Label(dict(found), visible=True), note("By the classifier of this run, of a centre crop.")

    def download_run(token: str, folder: str | None) -> str:
        with told():
            run = opened(folder, public, token)
            return bundle(run.name, _files(run), {"run": run.name, "kind": run.kind, "config": run.config})

    def upload(token: str, folder: str | None, repository: str, private: bool, secret: str):
        try:
            address = hub.push(opened(folder, public, token), repository or "", secret or "", private=private)
        except DinovizError as error:
            return note(html.escape(str(error)), "caption dv-error"), ""
        return note(f'It is at <a href="{html.escape(address)}">{html.escape(address)}</a>.'), ""

    def upload_logged_in(
        token: str, folder: str | None, repository: str, private: bool, secret: str, login: gr.OAuthToken | None
    ):
        if login is None:
            return note("Log in first: the upload needs your right to write.", "caption dv-error"), ""
        return upload(token, folder, repository, private, login.token)

    gr.on(
        [chosen.change, bar.image.change, ripe.change], classify, [token, chosen, bar.image], [answer, answer_note],
        **PRIVATE,
    )  # fmt: skip
    file_button.click(download_run, [token, chosen], file, **ONCE).success(None, js=press)
    if hub_parts:
        *asked, secret, push, said = hub_parts
        # Gradio looks for a login where a function asks for one, which only a Space may have.
        handler = upload_logged_in if login else upload
        push.click(handler, [token, chosen, *asked, secret], [said, secret], **ONCE)


def _has_login() -> bool:
    """Whether people can log in with their account of the Hugging Face Hub, which takes a Space that asked for it."""
    return "SPACE_ID" in os.environ and all(map(os.environ.get, LOGIN))


def _hub(login: bool) -> tuple:
    """Repository, whether it is private, the token, the button, what is said of it."""
    with gr.Accordion("Put it on the Hugging Face Hub", open=False, elem_id="train-hub"):
        if login:
            gr.LoginButton(size="sm")
        repository = gr.Textbox(
            label="Repository", info="owner/name; it is made if there is none", max_lines=1, elem_id="train-hub-name"
        )
        secret = gr.Textbox(
            label="Your token", info="with the right to write; it is used once and not kept", type="password",
            elem_id="train-hub-token", visible=not login,
        )  # fmt: skip
        private = gr.Checkbox(True, label="Private", elem_id="train-hub-private")
        push = gr.Button("Upload", size="sm", elem_id="train-hub-push")
        said = gr.HTML(note(""), label="upload", elem_id="train-hub-said")
    return repository, private, secret, push, said


def _ask(bench: Workbench, run: Run, image: str) -> list[tuple[str, float]]:
    stamp = weights_stamp(str(run.folder))
    classifier = bench.derived(("classifier", str(run.folder), stamp), lambda: open_classifier(run.folder))
    picture = bench.picture(image).image
    with bench.turn(CLASSIFIER_BYTES):
        return predict(classifier, [picture], top=TOP)[0]


def _files(run: Run) -> list[tuple[str, bytes]]:
    """The run's network with its card, as other programs open it."""
    folder = run.export_folder
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise RunError(f"{run.name} has no network yet: there is one after its first checkpoint.")
    return [("README.md", hub_card(run).encode()), *((path.name, path.read_bytes()) for path in files)]
