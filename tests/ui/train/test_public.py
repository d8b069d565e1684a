"""Training on a public page: bounded runs, no path of the server, and a Space that starts."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio.oauth
import httpx
import pytest

from dinoviz.ui.access import Settings, visible
from dinoviz.ui.train.publish import LOGIN
from dinoviz.ui.train.run_list import pathless
from tests.conftest import ROOT
from tests.ui.train.test_endpoints import ME, YOU, Served, pictures, serving
from training.config.cli import KINDS
from training.config.pretrain import PRESETS, PretrainConfig, pretrain_preset
from training.runs.limits import LimitError, Limits, folder_bytes
from training.runs.run import list_runs


@pytest.mark.parametrize("login", [False, True])
def test_a_space_with_training_starts_with_and_without_login(login, tmp_path, monkeypatch):
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


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Iterator[Served]:
    """A public page with a folder of runs of its own; none is started."""
    with serving(tmp_path_factory.mktemp("strangers"), Settings(public=True, runs_at_once=0)) as served:
        yield served


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("pretrain", {"epochs": 301}, "epochs.*300"),
        ("pretrain", {"batch": 129}, "batch.*128"),
        ("pretrain", {"dim": 768, "heads": 12}, "dim.*384"),
        ("pretrain", {"depth": 24}, "depth.*12"),
        ("pretrain", {"global_size": 448}, "global_size.*224"),
        ("pretrain", {"prototypes": 65536}, "prototypes.*16,384"),
        ("pretrain", {"checkpoint_minutes": 0}, "checkpoint_minutes.*0.1"),
        ("pretrain", {"snapshot_every": 0.001}, "snapshot_every.*0.5"),
        ("pretrain", {"patch": 2, "global_size": 224, "batch": 128}, "memory"),
        ("finetune", {"size": 518}, "size.*336"),
        ("finetune", {"way": "full", "model": "dinov2-large"}, "memory"),
        ("probe", {"resolution": 1792}, "518"),
    ],
)
def test_a_run_of_a_public_page_has_bounds(kind, settings, named):
    preset = pretrain_preset("micro") if kind == "pretrain" else {}
    with pytest.raises(LimitError, match=named):
        Limits().check(kind, KINDS[kind].from_dict({**preset, **settings}), 0)


def test_a_public_page_neither_starts_nor_times_a_run_beyond_the_bounds(public):
    before = len(list_runs())
    assert "300" in public.refusal("start", ME, pretrain_epochs=301)
    (words,) = public.ask("show_estimate", pretrain_dim=768, pretrain_heads=12)  # would run in the page's process
    assert "384" in words
    assert len(list_runs()) == before


def test_images_and_disk_are_bounded(public, monkeypatch):
    file = public.upload("photos.zip", pictures())
    limits = Limits(images=39)
    with pytest.raises(LimitError, match=r"39.*40"):
        limits.check("pretrain", PretrainConfig(), 40)
    public.ask("start", ME, where="upload", files=[file])
    (run,) = visible(True, ME)
    own = folder_bytes(run.folder)
    assert own > len(pictures())
    limits = Limits(megabytes=own / 1e6)
    limits.check_disk(own // 10, own)
    for of_browser, of_all in ((own, own), (0, own + 1)):
        with pytest.raises(LimitError):
            limits.check_disk(of_browser, of_all)


def test_all_presets_but_small_are_within_the_bounds():
    for name in PRESETS:
        config = PretrainConfig(**pretrain_preset(name))
        if name == "small":
            with pytest.raises(LimitError):
                Limits().check("pretrain", config, 0)
        else:
            Limits().check("pretrain", config, 0)
    for kind in ("finetune", "probe"):
        Limits().check(kind, KINDS[kind](), 0)


def test_the_operator_sets_the_bounds():
    limits = Limits.of({"DINOVIZ_TRAIN_MINUTES": "5", "DINOVIZ_TRAIN_MB": "", "OTHER": "7"})
    assert limits == Limits(minutes=5)
    for text in ("-1", "0", "NaN", "inf", "many"):
        with pytest.raises(LimitError, match="DINOVIZ_TRAIN_GB"):
            Limits.of({"DINOVIZ_TRAIN_GB": text})


def test_no_path_of_the_server_is_sent(public, monkeypatch, tmp_path):
    """Beside those in the folder of the page's own temporary files, which Gradio needs."""
    for run in visible(True, ME):
        if run.status()["state"] == "queued":
            public.ask("stop", ME, run.name)
    public.ask("start", ME, name="mine")
    run = visible(True, ME)[0]
    sent = [public.page.get_config_file(), public.ask("refresh", ME, run.name, []), public.ask("start", YOU, name="b")]
    sent += [public.ask("show_active", ME), public.ask("show_command"), public.ask("preview_data")]
    for name in ("resume", "download_run"):
        sent.append(public.refusal(name, ME, run.name))
    run.set_status("failed", message=f"The export of {run.folder / 'export'} cannot be written: No space left.")
    run.log(f"File \"{json.__file__}\", line 3\n[Errno 2] No such file: '{Path.home() / 'x.txt'}'")
    (run.folder / "output.txt").write_text(f"{tempfile.gettempdir()}/a/b.png cannot be read.\n")
    (status, log) = [public.ask("refresh", ME, run.name, [])[i] for i in (2, -3)]
    assert "The export of export cannot be written: No space left." in status
    assert 'File "__init__.py", line 3' in log
    sent += [status, log]
    (run.folder / "status.json").write_text("{")
    sent.append(public.ask("refresh", ME, run.name, []))
    text = json.dumps(sent, default=str)
    text = text.replace(str(public.page.files.folder), "")
    places = {Path.cwd(), Path.home(), public.home, public.home / "runs", Path(tempfile.gettempdir()), ROOT}
    for place in places:
        found = text.find(f"{place}/")
        assert found < 0, text[max(0, found - 100) : found + 100]


def test_addresses_and_relative_paths_stay_as_they_are():
    for text in ("https://huggingface.co/docs/hub", "rgb/1.png and a/b/c.png", "1/2 and 3 / 4", "runs/mine/export"):
        assert pathless(text) == text
    assert pathless("/etc/passwd, (/a/b c) and C:\\Users\\me\\x.png") == "passwd, (b c) and x.png"
