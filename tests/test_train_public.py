"""What strangers can make of training: bounded runs, no path of the server, and a Space that starts."""

import gradio.oauth
import httpx
import pytest

from dinoviz.ui.train_after import LOGIN
from dinoviz.ui.workbench import Settings
from tests.test_train_endpoints import serving


@pytest.mark.parametrize("login", [False, True])
def test_a_space_where_one_trains_starts_with_a_login_and_without(login, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/dinoviz")
    monkeypatch.setattr(gradio.oauth, "get_space", lambda: "someone/dinoviz")
    for name in LOGIN:
        value = "https://example.invalid" if login else None
        monkeypatch.setattr(gradio.oauth, name, value)
        monkeypatch.setenv(name, value) if login else monkeypatch.delenv(name, raising=False)
    with serving(tmp_path / "space", Settings(public=True, runs_at_once=0)) as served:
        root = served.url.removesuffix("/gradio_api")
        config = httpx.get(f"{root}/config", timeout=30).json()
        names = {fn.name for fn in served.page.fns.values()}
    assert any(part["props"].get("elem_id") == "train-start" for part in config["components"])
    assert ("upload_logged_in" in names) == login
    assert "upload" not in names
