"""A run's network on the Hugging Face Hub, with its card."""

from __future__ import annotations

import re

from dinoviz.errors import DinovizError
from training.publish.model_card import hub_card
from training.runs.run import Run


class HubError(DinovizError):
    """What the Hub did not take; the message says why."""


def push(run: Run, repository: str, token: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload a run's exported network and its card -> the address of the repository, which is made if there is none.

    repository: owner/name. token: the person's own, with the right to write; it is not kept. endpoint: of another Hub.
    Raises HubError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository.strip()):
        raise HubError("Name the repository as owner/name.")
    if not token.strip():
        raise HubError("The Hub needs your token, with the right to write: huggingface.co/settings/tokens.")
    if not re.fullmatch(r"[!-~]+", token.strip()):  # before a client quotes it in its complaint
        raise HubError("This is not a token: those of the Hub begin with hf_ and have letters and digits.")
    if not run.export_folder.is_dir():
        raise HubError(f"{run.name} has no network yet: there is one after its first checkpoint.")
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
            raise HubError(f"The Hub refused: the token has no right to write {name}.") from None
        raise HubError(f"The Hub refused: {_first_sentence(error)}.") from None
    except Exception as error:  # of whichever HTTP client this version of huggingface_hub comes with
        raise HubError(f"The Hugging Face Hub does not answer: {_first_sentence(error)}.") from None
    return str(address)


def _first_sentence(error: Exception) -> str:
    """Of what the Hub said, or else its client, the first sentence."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0].rstrip(".: ")
