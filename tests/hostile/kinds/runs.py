"""Run folders that somebody edited, copied in parts, or made up. Each case is a folder that holds one run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.hostile.generate import Corpus, deep

CONFIG = {"kind": "pretrain", "data": [], "epochs": 2.0, "dim": 32}
STATUS = {"state": "finished", "step": 4, "steps": 4, "eta": 0, "time": 1.0e9, "pid": 1, "host": "elsewhere"}
STEP = "snapshots/step-00000004"


def write(corpus: Corpus) -> None:
    def run(
        name: str,
        *,
        config: object = CONFIG,
        status: object = STATUS,
        metrics: str = '{"step": 1, "loss": 2.0}\n',
        change: Callable[[Path], object] = lambda run: None,
        called: str = "",
    ) -> None:
        folder = corpus.folder("run", name) / (called or name)
        (folder / STEP / "export").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        for file, content in (("config.json", config), ("status.json", status), ("metrics.jsonl", metrics)):
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        change(folder)

    run("good")
    for value, changed in {
        "list": "[]",
        "number": "7",
        "null": "null",
        "text": "no JSON",
        "empty": "",
        "deep": deep(),
        "deep-inside": '{"state": "running", "a": ' + deep() + "}",
        "state-list": {"state": ["running"]},
        "state-dict": {"state": {"a": 1}},
        "state-null": {"state": None},
        "state-unknown": {"state": "<script>alert(1)</script>"},
        "state-number": {"state": 7},
        "step-text": {"step": "four"},
        "step-list": {"step": [4]},
        "steps-zero": {"steps": 0},
        "step-infinite": {"step": float("inf")},
        "step-nan": {"step": float("nan"), "steps": float("nan")},
        "step-digits": '{"state": "running", "step": ' + "9" * 400 + "}",
        "time-text": {"time": "now"},
        "time-infinite": {"time": float("inf")},
        "time-negative": {"time": -1e300},
        "time-null": {"time": None},
        "eta-text": {"eta": "soon"},
        "eta-infinite": {"eta": float("inf")},
        "eta-nan": {"eta": float("nan")},
        "eta-list": {"eta": []},
        "pid-most": {"state": "running", "pid": 2**70, "host": None},
        "message-list": {"message": [1]},
        "message-long": {"state": "failed", "message": "x" * 500_000},
        "message-html": {"state": "failed", "message": "<img src=x onerror=alert(1)>"},
        "host-list": {"host": []},
        "message-number": {"state": "failed", "message": 7},
        "digits-5000": '{"step": ' + "9" * 5000 + "}",
    }.items():
        run(f"status-{value}", status={**STATUS, **changed} if isinstance(changed, dict) else changed)
    import socket

    here = {**STATUS, "state": "running", "host": socket.gethostname()}
    for name, pid in (("most", 2**70), ("negative", -1), ("text", "1"), ("list", [1]), ("zero", 0), ("real", 1.5)):
        run(f"process-{name}", status={**here, "pid": pid})
    run("process-born", status={**here, "pid": 1, "born": float("nan")})
    _metrics(run)
    _configs(run)
    _files(run)


def _metrics(run) -> None:
    for name, text in {
        "empty": "",
        "text": "no JSON\n",
        "deep": deep() + "\n",
        "list": "[1]\n",
        "null": "null\n",
        "nan": '{"step": 1, "loss": NaN, "knn": Infinity}\n',
        "strings": '{"step": "1", "loss": "2"}\n',
        "lists": '{"step": 1, "loss": [2]}\n',
        "dicts": '{"step": {"a": 1}, "loss": {"b": 2}}\n',
        "no-step": '{"loss": 2}\n',
        "null-step": '{"step": null, "loss": null}\n',
        "step-infinite": '{"step": Infinity, "loss": 1}\n',
        "digits": '{"step": ' + "9" * 400 + ', "loss": ' + "9" * 400 + "}\n",
        "digits-5000": '{"step": ' + "9" * 5000 + "}\n",
        "backwards": '{"step": 9, "loss": 1}\n{"step": 3, "loss": 1}\n',
        "half": '{"step": 1, "lo',
        "many": '{"step": 1, "loss": 1}\n' * 20_000,
        "names": '{"step": 1, "<script>alert(1)</script>": 2}\n',
        "booleans": '{"step": true, "loss": false}\n',
        "1e308": '{"step": 1, "loss": 1e308}\n{"step": 2, "loss": -1e308}\n',
    }.items():
        run(f"metrics-{name}", metrics=text)
    run("metrics-binary", change=lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\0\n" * 500))


def _configs(run) -> None:
    for name, config in {
        "empty": "",
        "list": "[]",
        "text": "no JSON",
        "deep": deep(),
        "kind-list": {"kind": []},
        "kind-unknown": {"kind": "evil"},
        "kind-html": {"kind": "<b>"},
        "kind-null": {"kind": None},
        "epochs-infinite": {"epochs": float("inf")},
        "epochs-1e9": {"epochs": 1e9},
        "data-number": {"data": 7},
        "data-list": {"data": [[1], {"a": 2}]},
        "unknown": {"evil": 1},
        "digits": '{"kind": "pretrain", "dim": ' + "9" * 5000 + "}",
        "finetune": {"kind": "finetune", "data": 3},
        "probe": {"kind": "probe", "data": []},
        "dim-nan": {"dim": float("nan")},
        "probe-images": {"probe_images": ["/dev/zero"]},
        "start": {"start": "/dev/zero"},
    }.items():
        run(f"config-{name}", config={**CONFIG, **config} if isinstance(config, dict) else config)


def _files(run) -> None:
    def replaced(file: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            path = folder / file
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            how(path)

        return change

    for name, called in {
        "abc": "step-abc",
        "empty": "step-",
        "digits": "step-" + "9" * 200,
        "negative": "step--4",
        "arabic": "step-\u0664",
        "square": "step-\u00b2",
        "real": "step-1.5",
        "newline": "step-\n4",
        "not-utf8": os.fsdecode(b"step-\xff"),
        "html": "step-<b>",
    }.items():

        def snapshot(folder: Path, called: str = called) -> None:
            (folder / "snapshots" / called / "export").mkdir(parents=True)
            (folder / "snapshots" / called / "export" / "config.json").write_text("{}")

        run(f"snapshot-{name}", change=snapshot)
    for name in ("status.json", "metrics.jsonl", "config.json", "log.txt", "stop", "lock"):
        run(f"fifo-{name}", change=replaced(name, os.mkfifo))
        run(f"folder-{name}", change=replaced(name, Path.mkdir))
        run(f"zero-{name}", change=replaced(name, lambda path: path.symlink_to("/dev/zero")))
    run("snapshots-file", change=replaced("snapshots", Path.touch))
    run("checkpoints-file", change=replaced("checkpoints", Path.touch))
    run("log-binary", change=lambda folder: (folder / "log.txt").write_bytes(b"\xff\xfe<script>\n" * 200))
    run("export-empty", change=replaced("export/config.json", lambda path: path.write_text("")))
    run("export-deep", change=replaced("export/config.json", lambda path: path.write_text(deep())))
    for name, text in {
        "text": "no JSON",
        "deep": deep(),
        "list": "[]",
        "paths": '{"files": {"../../config.json": "0"}}',
        "numbers": '{"step": 4, "files": 7, "sha256": []}',
    }.items():

        def checkpoint(folder: Path, text: str = text) -> None:
            for step in ("step-00000004", "step-abc"):
                (folder / "checkpoints" / step).mkdir()
                for file in ("state.json", "manifest.json", "checkpoint.json"):
                    (folder / "checkpoints" / step / file).write_text(text)

        run(f"checkpoint-{name}", change=checkpoint)
    for name, called in {
        "html": "<img src=x onerror=alert(1)>",
        "spaces": "a b",
        "long": "n" * 200,
        "emoji": "\U0001f408",
    }.items():
        run(f"name-{name}", called=called)
    run("name-not-utf8", called=os.fsdecode(b"run-\xff\xfe"))
    run("arrays-text", change=lambda folder: (folder / STEP / "arrays.npz").write_text("no arrays"))
    run("snapshot-pictures", change=lambda folder: [(folder / STEP / f"{name}.jpg").write_text("x") for name in "ab"])
