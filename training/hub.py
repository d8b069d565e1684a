"""A run's network on the Hugging Face Hub, with its card."""

from __future__ import annotations

import re

from dinoviz.errors import DinovizError
from training.card import hub_card
from training.runs import Run


class HubError(DinovizError):
    """What the Hub did not take; the message says why."""


def push(run: Run, repository: str, token: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload a run's exported network and its card -> the address of the repository, which is made if there is none.

    repository: owner/name. token: the person's own, with the right to write; it is not kept. endpoint: of another Hub.
    Raises HubError.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository.strip()):
        raise HubError("Name the repository as owner/name.")
    if not token.strip():
        raise HubError("The Hub needs your token, with the right to write: huggingface.co/settings/tokens.")
    if not run.export_folder.is_dir():
        raise HubError(f"{run.name} has no network yet: there is one after its first checkpoint.")
    api, name = HfApi(endpoint=endpoint, token=token.strip()), repository.strip()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        what = f"Add {run.name}, trained with dinoviz"
        api.upload_folder(repo_id=name, folder_path=run.export_folder, commit_message=what)
        card = hub_card(run).encode()
        api.upload_file(repo_id=name, path_or_fileobj=card, path_in_repo="README.md", commit_message=f"{what}: card")
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(f"The Hub refused: the token has no right to write {name}.") from None
        raise HubError(f"The Hub refused: {_first_line(error)}") from None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        raise HubError(f"The Hugging Face Hub does not answer: {_first_line(error)}") from None
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
