"""The Hugging Face Hub: what is a name there, whether it answers, and a model's files from its cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dinoviz.model_files import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    WEIGHTS,
    _shards,
)

HUB_TIMEOUT = 3.0  # seconds to wait for the Hub's first word before going on without it


def quiet_transformers() -> None:
    """Keep transformers' loading bars and tables off the terminal; what is wrong with weights, `load` says itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def hub_answers(timeout: float = HUB_TIMEOUT) -> bool:
    """Whether the Hugging Face Hub may be asked (HF_HUB_OFFLINE) and gives a page within `timeout` seconds.

    An error is no answer, whoever it is from: a proxy that lets nobody through says 403 or 407 in the Hub's place.
    """
    import threading

    import httpx
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            if httpx.head(f"{constants.ENDPOINT}/facebook/dinov2-small", timeout=timeout).status_code < 400:
                answered.set()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # the last for a host name that cannot be one
            pass

    # In a thread of its own because a name server that stays silent is not covered by the client's time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; also a name that no path can have is none."""
    try:
        return path.is_dir()
    except OSError:  # a name that no file system takes
        return False


def is_hub_id(text: str) -> bool:
    """Whether it has the form owner/name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def hub_folder(hub_id: str, *, offline: bool) -> Path:
    """Where the Hub's cache has a model, downloaded if need be; no pickle is ever downloaded.

    Raises OSError, in transformers' words, for what the Hub or its cache does not have, ModelError as `check_folder`.
    """
    from transformers.utils import cached_file

    def fetch(name: str, revision: str | None = None) -> Path:
        return Path(cached_file(hub_id, name, revision=revision, local_files_only=offline))

    folder = fetch(CONFIG).parent
    commit = folder.name  # the Hub's newest may change meanwhile
    with suppress(OSError):
        fetch(PREPROCESSOR, commit)
    try:
        fetch(WEIGHTS, commit)
    except OSError as error:
        try:
            fetch(INDEX, commit)
        except OSError:
            raise error from None
        for name in _shards(folder):
            fetch(name, commit)
    return folder
