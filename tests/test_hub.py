"""The Hugging Face Hub: whether it answers, and models from its cache without it."""

import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

import dinoviz
from dinoviz import hub, models
from dinoviz.errors import DinovizError
from tests import tiny_dpt


@pytest.fixture
def no_hub_cache(monkeypatch, tmp_path):
    """As on a machine that never downloaded a model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


# Whether it answers


def test_a_silent_server_is_given_up_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        assert not hub.hub_answers(timeout=0.3)
        assert 0.25 < time.monotonic() - start < 1.5


def test_a_silent_name_server_is_given_up_in_time(monkeypatch):
    # The system's resolver knows nothing of the client's time-out.
    over = threading.Event()

    def silent(*_, **__):
        over.wait(5)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    start = time.monotonic()
    assert not hub.hub_answers(timeout=0.3)
    assert time.monotonic() - start < 1
    over.set()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("endpoint", ["", "nonsense", "http://[", "http://a\nb", "http://xn--"])
def test_an_invalid_endpoint_is_not_the_hub(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not hub.hub_answers(timeout=1)


@pytest.mark.parametrize(
    ("status", "answers"),
    # 403 and 407 are what a proxy says that lets nobody through to the Hub.
    [(200, True), (307, True), (401, False), (403, False), (404, False), (407, False), (503, False)],
)
def test_only_a_status_below_400_is_an_answer(status, answers, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        assert hub.hub_answers() is answers


# Its cache


@pytest.mark.parametrize("name", ["dinov2-small", "facebook/dinov2-small", "somebody/no-such-model"])
def test_without_the_hub_and_its_cache_a_model_is_refused_at_once(name, no_hub_cache):
    start = time.monotonic()
    with pytest.raises(models.ModelError) as refusal:
        dinoviz.load(name)
    assert time.monotonic() - start < 1
    assert name in str(refusal.value)
    assert "HF_HUB_OFFLINE" in str(refusal.value)
    assert models.default_name() == "embedded"


def test_a_cached_model_needs_no_hub(tiny_folders, tmp_path, monkeypatch):
    tiny_dpt.in_the_hubs_cache(monkeypatch, tiny_folders["dinov2"], "facebook/dinov2-small", tmp_path / "hub")
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    assert models.default_name() == "dinov2-small"
    assert not models.is_cached("dinov2-base")
    assert "facebook/dinov2-small" in dinoviz.load("dinov2-small").source


def test_a_pickle_in_the_cache_is_not_opened(tiny_folders, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(tiny_folders["dinov2"], tmp_path / "old"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    tiny_dpt.in_the_hubs_cache(monkeypatch, folder, "somebody/old", tmp_path / "hub")
    with pytest.raises(DinovizError, match="somebody/old"):
        dinoviz.load("somebody/old")
