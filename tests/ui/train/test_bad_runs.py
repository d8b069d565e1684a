"""Whatever lies in a run's folder, the page lists it, says what is wrong with it, and shows all other runs."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.ui import build
from dinoviz.ui.access import Settings
from dinoviz.ui.train.run_list import label
from dinoviz.ui.workbench import Workbench
from training.config.cli import KINDS
from training.queue import Jobs
from training.runs.run import Run, list_runs

SEED = 12
A_PART = 25  # of the ways to spoil a JSON file that are tried, for each of its files
SCORES = {"top1": 0.5, "top5": None, "n": 2, "per_class": {"a": 1.0, "b": 0.0}, "confusion": [[1, 0], [1, 0]]}
FIGURES = dict.fromkeys(("rmse", "abs_rel", "log10", "silog", "delta1", "delta2", "delta3"), 0.5)
RESULTS = {
    "pretrain": {},
    "finetune": {"validation": SCORES},
    "probe": {"metrics": {"validation": {**FIGURES, "images": 3, "median_scaled": FIGURES}}, "data": {"rule": "names"}},
}
# As JSON: what may stand in place of a value.
VALUES = (
    *("null", "[]", "{}", '""', '"text"', "true", "-1", "0", "1e400", "NaN", "-Infinity", "1" + "0" * 400, '"\\ud800"'),
    *('"<img src=x onerror=alert(1)>"', "[" * 5000 + "]" * 5000, '{"a": [[]]}', '"' + "x" * 100_000 + '"', "0.5"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """The folder of runs, with a good one of each kind."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOVIZ_RUNS", str(home / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", str(home / "cache"))
        patch.setattr(Workbench, "warm_up", lambda *_: None)
        for kind in KINDS:
            make_run(f"good-{kind}", kind)
        yield home / "runs"


@pytest.fixture(scope="module")
def ask(home) -> Callable:
    """Calls one of the Train tab's functions, as the page does."""
    page = build(Settings(runs_at_once=0))
    functions = {
        fn.name: fn.fn for fn in page.fns.values() if ".ui.train" in (getattr(fn.fn, "__module__", None) or "")
    }
    return lambda name, *values: functions[name](*values)


@pytest.fixture(params=KINDS)
def run(request, home) -> Iterator[Run]:
    """The one that is spoilt."""
    yield make_run("bad", request.param)
    shutil.rmtree(home / "bad", ignore_errors=True)


def make_run(name: str, kind: str) -> Run:
    """A finished run with all the files that the page reads."""
    run = Run.create(name, kind, KINDS[kind]().to_dict())
    run.set_status("finished", step=20, steps=20, eta=0.0, message="Done.")
    for step in (10, 20):
        run.add_metrics({"step": step, "epoch": step / 10, "loss": 1 / step, "knn": 0.5, "speed": 20.0, "lr": 1e-3})
        snapshot = run.folder / "snapshots" / f"step-{step:08}"
        snapshot.mkdir()
        for picture in ("attention-0.png", "pca-0.png", "../probe-0.png"):
            Image.new("RGB", (8, 8), "red").save(snapshot / picture)
        np.savez(snapshot / "arrays.npz", attention_0=np.ones((1, 2, 2)))
    run.save_checkpoint(20, {"student": {"weight": torch.ones(2)}}, {"data": "digest"})
    (run.folder / "result.json").write_text(json.dumps(RESULTS[kind]))
    run.log("It began.")
    (run.folder / "output.txt").write_text("printed\n")
    return run


def shown(ask: Callable, chosen: str) -> str:
    """What the page says of a run as HTML; there is nothing in all that it is told that JSON cannot hold."""
    sent = ask("refresh", "", f"{chosen}", [], 0.6, False, "step", {})
    assert json.dumps(sent, default=lambda part: part.get_config(), allow_nan=False).encode()
    _, _, status, *_ = sent
    return status


def check(ask: Callable, home: Path, what: str) -> None:
    """The page answers, and the good runs are shown right."""
    began = time.monotonic()
    labels = {run.name: label(run) for run in list_runs()}
    for kind in KINDS:
        assert labels[f"good-{kind}"] == f"✓ good-{kind} ({kind}, finished)", what
    text = shown(ask, str(home / "bad"))
    assert ("<b>bad</b>" in text) == ("bad" in labels), what  # without a config.json it is no run
    assert "<img" not in text, what
    ask("say_what_goes_on", "")
    ask("offer_teachers", "embedded", None)
    Workbench.model_choices(Workbench(Settings()), snapshots=True)
    Run(home / "bad").checkpoint()
    assert time.monotonic() - began < 5, what


def spoilt_values(text: str) -> Iterator[tuple[str, bytes]]:
    """One value at a time replaced, at any depth; in a file of several lines those of the last."""
    *lines, last = text.strip().split("\n") if text.count("\n}") == 0 else [text]
    content = json.loads(last)

    def places(part, path=()) -> Iterator[tuple]:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield (*path, key)
            if isinstance(value, dict | list):
                yield from places(value, (*path, key))

    for path in places(content):
        for value in VALUES:
            changed = json.loads(last)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = "PUT HERE"
            spoilt = json.dumps(changed).replace('"PUT HERE"', value)
            yield f"{path} is {value[:30]}", "\n".join([*lines, spoilt, ""]).encode()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", "status.json", "metrics.jsonl", "result.json", "checkpoint"])
def test_no_value_in_a_file_breaks_the_page(name, run, ask, home):
    file = next(run.folder.glob("checkpoints/*/state.json")) if name == "checkpoint" else run.folder / name
    good = file.read_text()
    found = list(spoilt_values(good))
    for what, content in random.Random(f"{SEED} {name} {run.kind}").sample(found, min(A_PART, len(found))):
        file.write_bytes(content)
        check(ask, home, f"{name} where {what}")


def wholly_spoilt(content: bytes) -> Iterator[tuple[str, bytes]]:
    generator = random.Random(SEED)
    for cut in sorted(generator.sample(range(len(content)), min(4, len(content)))):
        yield f"cut at {cut}", content[:cut]
    for name, text in (("null", "null"), ("list", "[1, 2]"), ("text", '"text"'), ("number", "1e400"), ("empty", "")):
        yield name, text.encode()
    yield "deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    yield "lists", b"[" * 200_000
    yield "not UTF-8", b'{"kind": "\xff\xfe", "state": "\xc3("}'
    yield "random", generator.randbytes(3000)
    flipped = bytearray(content)
    for place in generator.sample(range(len(content)), min(20, len(content))):
        flipped[place] ^= 1 << generator.randrange(8)
    yield "bits", bytes(flipped)


FILES = ("config.json", "status.json", "metrics.jsonl", "result.json", "log.txt", "output.txt", "owner.txt", "stop")
PLACES = (
    *FILES, "snapshots/probe-0.png", "snapshots/step-00000010/arrays.npz", "snapshots/step-00000010/pca-0.png",
    "checkpoints/step-00000020/state.json", "checkpoints/step-00000020/student.safetensors",
)  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", PLACES)
def test_no_file_breaks_the_page(place, ask, home):
    run = make_run("bad", "pretrain")
    file = run.folder / place
    try:
        for what, content in wholly_spoilt(file.read_bytes() if file.exists() else b"x"):
            file.write_bytes(content)
            check(ask, home, f"{place}: {what}")
        for make in (
            Path.mkdir,
            os.mkfifo,
            lambda path: path.symlink_to(path),
            lambda path: path.symlink_to("/dev/zero"),
        ):
            file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
            make(file)
            check(ask, home, f"{place}: {make}")
        file.unlink()
        check(ask, home, f"{place} is not there")
        with file.open("wb") as sparse:  # takes no room on the disk
            sparse.truncate(2 * 10**9)
        check(ask, home, f"{place} has 2 GB")
    finally:
        shutil.rmtree(home / "bad")


@pytest.mark.timeout(60)
def test_a_folder_beside_the_snapshots_breaks_nothing(run, ask, home):
    for name in ("step-abc", "step-", "step-1.5", "step-" + "9" * 200, "step-٣", "step-00000020.part", "x\ny"):
        (run.folder / "snapshots" / name / "export").mkdir(parents=True)
        (run.folder / "snapshots" / name / "export" / "config.json").write_text("{}")
        (run.folder / "snapshots" / name / "arrays.npz").touch()
        check(ask, home, name)
    page = build(Settings(runs_at_once=0))  # an app that is started now
    assert page.blocks
    (run.folder / "snapshots" / "step-00000010" / "export").mkdir()
    (run.folder / "snapshots" / "step-00000010" / "export" / "config.json").write_text("{}")
    assert [path.name for path in run.networks(snapshots=True)] == ["step-00000010"]


@pytest.mark.timeout(60)
def test_the_queue_goes_on_past_bad_runs(home):
    """Each status that was spoilt is met by the thread that starts what waits."""
    jobs = Jobs(limit=0)
    bad, waits = make_run("bad", "pretrain"), jobs.submit("waits", "pretrain", KINDS["pretrain"]())
    try:
        for _, content in wholly_spoilt((bad.folder / "status.json").read_bytes()):
            (bad.folder / "status.json").write_bytes(content)
            assert jobs._count() == 0
        time.sleep(0.7)
        assert jobs.queue() == ["waits"]
        jobs.stop(waits)
        assert waits.status()["state"] == "stopped"
        assert jobs._supervisor.is_alive()
    finally:
        jobs.close(0)
        for run in (bad, waits):
            shutil.rmtree(run.folder)


@pytest.mark.timeout(60)
def test_what_is_wrong_is_said_where_the_run_is(run, ask, home):
    (run.folder / "status.json").write_text('{"state": "running", "step": "<b>many</b>"}')
    assert (
        label(run)
        == "✗ bad (cannot be read: status.json: step must be a whole number from 0 to 1000000000000, not '<b>many</b>')"
    )
    text = shown(ask, str(run.folder))
    assert "step must be a whole number" in text
    assert "<b>many" not in text
    run.set_status("finished")
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "batch": -4}))
    assert "config.json: batch must be" in label(run)
    assert "config.json: batch must be" in shown(ask, str(run.folder))
    (run.folder / "config.json").write_text(json.dumps({**config, "of another version": [1]}))
    assert label(run) == f"✓ bad ({run.kind}, finished)"
