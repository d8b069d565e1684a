"""What strangers can make of training: bounded runs, no path of the server, and a Space that starts."""

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
from training.config.tasks import ProbeConfig
from training.runs.limits import LimitError, Limits, folder_bytes
from training.runs.run import list_runs


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


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Iterator[Served]:
    """A page that strangers share, with runs in a folder of its own; none is started."""
    with serving(tmp_path_factory.mktemp("strangers"), Settings(public=True, runs_at_once=0)) as served:
        yield served


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pretrain_epochs": 301}, "epochs is at most 300"),
        ({"pretrain_epochs": 1e9}, "epochs"),
        ({"pretrain_batch": 129}, "batch is at most 128"),
        ({"pretrain_dim": 768, "pretrain_heads": 12}, "dim is at most 384"),
        ({"pretrain_depth": 24}, "depth is at most 12"),
        ({"pretrain_global_size": 448}, "global_size is at most 224"),
        ({"pretrain_prototypes": 65536}, "prototypes is at most 16,384"),
        ({"pretrain_checkpoint_minutes": 0}, "checkpoint_minutes is at least 0.1"),
        ({"pretrain_snapshot_every": 0.001}, "snapshot_every is at least 0.5"),
        ({"pretrain_patch": "2", "pretrain_global_size": 224, "pretrain_batch": 128}, "GB of memory"),
        ({"task": "finetune", "finetune_size": 518}, "size is at most 336"),
        ({"task": "finetune", "finetune_method": "full", "model": "dinov2-large"}, "16 GB of memory"),
    ],
)
def test_a_run_of_strangers_has_bounds(values, told, public):
    before = len(list_runs())
    assert told in public.refusal("start", ME, **values)
    (said,) = public.ask("say_estimate", **values)  # which would compute such a step in the page's own process
    assert told in said
    assert len(list_runs()) == before


def test_one_learns_from_so_many_images_and_writes_so_much(public, monkeypatch):
    file = public.upload("photos.zip", pictures())
    limits = Limits(images=39)
    with pytest.raises(LimitError, match="39 images on this page, not 40"):
        limits.check("pretrain", PretrainConfig(), 40)
    public.ask("start", ME, where="upload", files=[file])
    (run,) = visible(True, ME)
    own = folder_bytes(run.folder)
    assert own > len(pictures())
    limits = Limits(megabytes=own / 1e6)
    limits.check_disk(own // 10, own)
    with pytest.raises(LimitError, match="your runs"):
        limits.check_disk(own, own)
    with pytest.raises(LimitError, match="all runs"):
        limits.check_disk(0, own + 1)


def test_the_presets_but_the_one_for_large_machines_are_within_bounds():
    for name in PRESETS:
        config = PretrainConfig(**pretrain_preset(name))
        if name == "small":
            with pytest.raises(LimitError):
                Limits().check("pretrain", config, 0)
        else:
            Limits().check("pretrain", config, 0)
    for kind in ("finetune", "probe"):
        Limits().check(kind, KINDS[kind](), 0)
    with pytest.raises(LimitError, match="518"):
        Limits().check("probe", ProbeConfig(resolution=1792), 0)


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
            public.ask("ask_to_stop", ME, run.name)
    public.ask("start", ME, name="mine")
    run = visible(True, ME)[0]
    sent = [public.page.get_config_file(), public.ask("refresh", ME, run.name, []), public.ask("start", YOU, name="b")]
    sent += [public.ask("say_what_goes_on", ME), public.ask("say_command"), public.ask("look_at_data")]
    for name in ("go_on", "download_run"):
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
