"""Upload of a run's network with its model card to the Hugging Face Hub."""

from __future__ import annotations

import re

from dinoviz.errors import DinovizError
from training.publish.model_card import hub_card
from training.runs.run import Run


class HubError(DinovizError):
    """An upload that failed; the message says why."""


def push(run: Run, repository: str, token: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload a run's exported network and its card. Returns the address of the repository, created if necessary.

    repository: owner/name. token: the user's, with write access; it is not stored. endpoint: of another Hub.
    Raises HubError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository.strip()):
        raise HubError("Name the repository as owner/name.")
    if not token.strip():
        raise HubError("The Hub needs a token with write access: create one at huggingface.co/settings/tokens.")
    if not re.fullmatch(r"[!-~]+", token.strip()):  # before a client quotes it in an error
        raise HubError("This is not a token: a token of the Hub begins with hf_ and has letters and digits.")
    if not run.export_folder.is_dir():
        raise HubError(f"{run.name} has no exported network yet: its first checkpoint writes one.")
    name = repository.strip()
    files = [path for path in sorted(run.export_folder.rglob("*")) if path.is_file()]
    adds = [CommitOperationAdd(path.relative_to(run.export_folder).as_posix(), path) for path in files]
    adds.append(CommitOperationAdd("README.md", hub_card(run, name).encode()))
    try:
        api = HfApi(endpoint=endpoint, token=token.strip())
        address = api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(name, adds, commit_message=f"Add {run.name}, trained with dinoviz")
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(f"The Hub refused: the token has no write access to {name}.") from None
        raise HubError(f"The Hub refused: {_first_sentence(error)}.") from None
    except Exception as error:  # the HTTP client, and its errors, depend on the version of huggingface_hub
        raise HubError(f"The Hugging Face Hub does not answer: {_first_sentence(error)}.") from None
    return str(address)


def _first_sentence(error: Exception) -> str:
    """The first sentence of the Hub's message, or of its client's error."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".: ")
