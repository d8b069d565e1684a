"""Find a model by its name: a folder, or a repository of the Hugging Face Hub and its local cache."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dinoviz.model_files import CONFIG, INDEX, PREPROCESSOR, WEIGHTS, ModelError, first_line, shard_names

HUB_TIMEOUT = 3.0  # seconds to wait for the Hub's first response before working without it


class FoundModel(NamedTuple):
    """Where the files of a model are.

    folder: in transformers' format. name: what to call the model. source: where it comes from, for a caption.
    """

    folder: Path
    name: str
    source: str


def find_model(name_or_folder: str) -> FoundModel | None:
    """The model in a folder or under a Hub id, downloaded if it is not cached; None for text that is neither.

    Raises ModelError if the Hub or its cache cannot provide the model.
    """
    path = Path(name_or_folder).expanduser()
    if is_folder(path):
        return FoundModel(path, path.resolve().name, f"the folder {path}")
    return from_hub(name_or_folder) if is_hub_id(name_or_folder) else None


def from_hub(hub_id: str, name: str | None = None) -> FoundModel:
    """A model of the Hub, downloaded if it is not cached; never a pickle.

    Args:
        hub_id: "owner/name".
        name: what to call the model, by default its Hub id.

    Raises:
        ModelError: if the Hub or, without a connection, its cache cannot provide the model.
    """
    name = name or hub_id
    offline = not hub_answers()
    try:
        folder = _download(hub_id, offline)
    except OSError as error:
        if offline:
            raise ModelError(
                f"{name}: the Hugging Face Hub does not answer (or HF_HUB_OFFLINE is set) and {hub_id} is not in its "
                "cache. Without a network, use a local folder or, as a backbone, 'embedded'."
            ) from None
        raise ModelError(f"{name}: cannot download {hub_id} from the Hugging Face Hub: {first_line(error)}") from None
    return FoundModel(folder, name, f"the Hugging Face Hub, {hub_id}")


def _download(hub_id: str, offline: bool) -> Path:
    """The folder of a model in the Hub's cache. Raises OSError, with transformers' message, if a file is missing."""
    from transformers.utils import cached_file

    def fetch(name: str, revision: str | None = None) -> Path:
        return Path(cached_file(hub_id, name, revision=revision, local_files_only=offline))

    folder = fetch(CONFIG).parent
    commit = folder.name  # all files of one commit: the repository may change meanwhile
    with suppress(OSError):
        fetch(PREPROCESSOR, commit)
    try:
        fetch(WEIGHTS, commit)
    except OSError as error:
        try:
            fetch(INDEX, commit)
        except OSError:
            raise error from None
        for name in shard_names(folder):
            fetch(name, commit)
    return folder


def is_cached(hub_id: str) -> bool:
    """Whether a model of the Hub can be loaded without a network."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(hub_id, file), str)

    return cached(CONFIG) and (cached(WEIGHTS) or cached(INDEX))


def hub_answers(timeout: float = HUB_TIMEOUT) -> bool:
    """Whether the Hub may be used (HF_HUB_OFFLINE) and responds within `timeout` seconds.

    Only a status below 400 counts: a proxy that blocks the Hub responds with 403 or 407 in its place.
    """
    import threading

    import httpx
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def request() -> None:
        try:
            if httpx.head(f"{constants.ENDPOINT}/facebook/dinov2-small", timeout=timeout).status_code < 400:
                answered.set()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # ValueError: an impossible host name
            pass

    # In its own thread because the client's timeout does not cover a name server that never responds.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def is_folder(path: Path) -> bool:
    """Whether the path is an existing folder; False also for a name that no file system accepts."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_hub_id(text: str) -> bool:
    """Whether the text has the form owner/name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def quiet_transformers() -> None:
    """Switch off transformers' progress bars and loading reports; `dinoviz.load` reports problems itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
