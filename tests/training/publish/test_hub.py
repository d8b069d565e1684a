"""A run goes to the Hub in one commit, here to a server of this machine; what goes wrong is one sentence."""

import base64
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import dinoviz
from tests.training.tiny_runs import begin, refused, settings, write_images
from training.pretrain import pretrain
from training.publish.hub import HubError, push
from training.publish.model_card import hub_card
from training.runs.run import Run

TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload needs: repositories are made, files committed, for one token.

    answer: (status, header X-Error-Message) of everything, where something is to go wrong.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.commits: list[dict] = []
        self.made: list[dict] = []
        self.answer: tuple[int, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for_private(self) -> list[bool]:
        """Of each repository; versions of huggingface_hub say it in one of two ways."""
        return [made.get("private", made.get("visibility") == "private") for made in self.made]


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.server.answer:
            self._say(self.server.answer[0], {}, **{"X-Error-Message": self.server.answer[1]})
        elif self.headers["authorization"] != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            self.server.made.append(wanted)
            url = f"{self.server.address}/{wanted['organization']}/{wanted['name']}"
            self._say(409 if len(self.server.made) > 1 else 200, {"url": url})
        elif self.path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self._say(200, {"files": modes})
        else:
            header, *files = (json.loads(line)["value"] for line in body.splitlines())
            self.server.commits.append(header)
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            url = f"{self.server.address}/someone/mini/commit/0"
            self._say(200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})

    def _say(self, status: int, content: dict, **headers: str) -> None:
        answer = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as conftest.py has it: this server is no network
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("hub")
    config = settings(write_images(folder / "photos", 8), epochs=1.0, batch=4)
    run = begin(config, folder / "runs", "mini")
    pretrain(config, run)
    return run


def test_the_network_and_its_card_arrive_in_one_commit(hub, run, tmp_path):
    address = push(run, " someone/mini ", f" {TOKEN}\n", endpoint=hub.address)
    assert address == f"{hub.address}/someone/mini"
    assert (hub.made[0]["name"], hub.made[0]["organization"], hub.asked_for_private()) == ("mini", "someone", [True])
    assert [commit["summary"] for commit in hub.commits] == ["Add mini, trained with dinoviz"]
    assert hub.files.pop("README.md").decode() == hub_card(run, "someone/mini")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert dinoviz.load(tmp_path).weights_id == dinoviz.load(run.folder).weights_id


def test_an_existing_repository_is_updated(hub, run):
    for _ in range(2):
        push(run, "someone/mini", TOKEN, private=False, endpoint=hub.address)
    assert hub.asked_for_private() == [False, False]
    assert len(hub.commits) == 2


def refusal(run: Run, repository: str = "someone/mini", token: str = TOKEN, **options) -> str:
    text = refused(HubError, push, run, repository, token, **options)
    assert token.strip() not in text or len(token.strip()) < 3
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    "name", ["", "mini", "a/b/c", "some one/mini", "../..mini", "someone/", "a\n/b", "-/-", "x/" + "y" * 200]
)
def test_refuses_invalid_repositories(name, run, hub):
    assert re.search("owner/name|The Hub refused: ", refusal(run, name, endpoint=hub.address))
    assert hub.made == []


@pytest.mark.parametrize("token", ["hf_two\nlines", "hf_ümlaut", "hf_ with space", "hf_\0", "🦖"])
def test_an_invalid_token_is_neither_sent_nor_quoted(token, run, hub):
    assert refusal(run, token=token, endpoint=hub.address).startswith("This is not a token")
    assert hub.made == []


def test_refuses_a_missing_token_and_a_missing_network(run, hub, tmp_path):
    assert "needs a token" in refusal(run, token=" ", endpoint=hub.address)
    empty = Run.create("empty", "pretrain", {}, root=tmp_path)
    assert "empty" in refusal(empty, endpoint=hub.address)


def test_refuses_a_token_without_write_access(run, hub):
    wrong = "hf_wrong"
    assert "someone/mini" in refusal(run, token=wrong, endpoint=hub.address)
    hub.answer = (403, "You don't have the rights to create a model under this namespace. Ask its owner.")
    assert "write access" in refusal(run, endpoint=hub.address)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, "The name is not allowed. Take another."), "The name is not allowed."),
        ((500, ""), "The Hub refused: "),
        ((429, "Slow down"), "Slow down."),
    ],
)
def test_the_hub_s_reason_is_in_the_error(answer, words, run, hub):
    hub.answer = answer
    assert words in refusal(run, endpoint=hub.address)


def test_no_network(run, hub, monkeypatch):
    assert refusal(run, endpoint="http://127.0.0.1:9").startswith("The Hugging Face Hub does not answer: ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in refusal(run, endpoint=hub.address)


def test_the_token_is_nowhere_afterwards(run, hub, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    with caplog.at_level(logging.DEBUG):
        push(run, "someone/mini", TOKEN, endpoint=hub.address)
        hub.answer = (500, "Broken")
        refusal(run, endpoint=hub.address)
    output = capfd.readouterr()
    assert TOKEN not in caplog.text + output.out + output.err
    for folder in (run.folder.parent, tmp_path, Path(constants.HF_HOME)):
        for file in folder.rglob("*") if folder.is_dir() else ():
            if file.is_file() and file.stat().st_size < 10**6:
                assert TOKEN.encode() not in file.read_bytes(), file
    assert not any(TOKEN.encode() in content for content in hub.files.values())
