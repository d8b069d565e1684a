"""The Compare tab's k-NN accuracies of A and B, on held-out crops of the built-in demo."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dinoviz.backbone import Backbone
from dinoviz.cache import OnceCache
from dinoviz.errors import DinovizError
from dinoviz.ui.compare.state import SIDES
from dinoviz.ui.jobs import Job
from dinoviz.ui.shared import note
from dinoviz.ui.workbench import Workbench
from training.data.demo import demo
from training.data.transforms import SHARE
from training.evaluate import knn
from training.evaluation.embed import embed, evaluation_size
from training.runs.run import Run, RunError

NEIGHBOURS = (10, 20)
TEMPERATURE = 0.07  # of DINO's evaluation
BATCH = 16  # small, so that the progress is updated often


@dataclass(frozen=True)
class Score:
    """k-NN accuracy of a model. top1: for each k of NEIGHBOURS. train, test: the number of images of each set."""

    model: str
    size: int
    train: int
    test: int
    classes: int
    top1: tuple[float, ...]

    def error(self, share: float) -> float:
        """The binomial standard error of an accuracy."""
        return (share * (1 - share) / self.test) ** 0.5


def measure(bench: Workbench, cache: OnceCache, names: tuple[str, str], job: Job) -> list[Score | str]:
    """The scores of both models, cached; an error message in place of one that cannot be loaded."""
    found: list[Score | str] = []
    for i, (side, name) in enumerate(zip(SIDES, names, strict=True)):

        def report(done: int, total: int, _: str, i: int = i, side: str = side) -> None:
            job.report(f"{side}: encoding the demo's crops", (i + done / total) / len(names))

        job.report(f"{side}: loading {name}", i / len(names))
        try:
            backbone = bench.backbone(name)
            found.append(cache.get(("k-NN", backbone.key), lambda b=backbone, r=report: score(b, r)))
        except DinovizError as error:
            found.append(str(error))
    return found


def score(backbone: Backbone, progress: Callable[[int, int, str], None] = lambda *_: None) -> Score:
    """Weighted k-NN of the CLS token on the demo, as `training.evaluate` does it. progress: called as by `embed`."""
    train, held_out = demo("train"), demo("held-out")
    total = len(train) + len(held_out)
    known = embed(backbone, train, batch=BATCH, progress=lambda done, _, what: progress(done, total, what))
    query = embed(
        backbone, held_out, batch=BATCH, progress=lambda done, _, what: progress(len(train) + done, total, what)
    )
    classes = len(train.classes)
    top1 = tuple(
        knn(known.features, train.labels, query.features, held_out.labels, k=k, temperature=TEMPERATURE,
            classes=classes)
        for k in NEIGHBOURS
    )  # fmt: skip
    return Score(backbone.name, evaluation_size(backbone), len(train), len(held_out), classes, top1)


def run_accuracy(name: str) -> str:
    """The last k-NN accuracy that a run has logged, as text; for a snapshot up to its step. "" where there is none."""
    path = Path(name)
    snapshot = path.parent.name == "snapshots"
    try:
        run = Run.open(path.parent.parent if snapshot else path)
        until = int(path.name.removeprefix("step-")) if snapshot else float("inf")
        measured = [r for r in run.metrics() if all(isinstance(r.get(key), int | float) for key in ("knn", "step"))]
        records = [r for r in measured if r["step"] <= until]
    except (RunError, OSError, ValueError):
        return ""
    return f"{records[-1]['knn']:.1%} at step {records[-1]['step']:,}" if records else ""


def table(names: tuple[str, str], found: list[Score | str]) -> str:
    """The scores as an HTML table, with the data and the protocol below it."""
    runs = [run_accuracy(name) for name in names]
    heads = ["", "weights", *(f"{k}-NN" for k in NEIGHBOURS), "crop", *(["logged by its run"] if any(runs) else [])]
    rows = ["".join(f"<th>{head}</th>" for head in heads)]
    for side, score, run in zip(SIDES, found, runs, strict=True):
        if isinstance(score, str):
            span = len(heads) - 1
            rows.append(f'<th>{side}</th><td colspan="{span}" class="dv-error">{html.escape(score)}</td>')
            continue
        shares = [f"{share:.1%} ± {score.error(share):.1%}" for share in score.top1]
        cells = [html.escape(score.model), *shares, f"{score.size} px", *([run] if any(runs) else [])]
        rows.append(f"<th>{side}</th>" + "".join(f"<td>{cell}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="dv-table">{body}</table>{note(_protocol(found, any(runs)))}'


def _protocol(found: list[Score | str], runs: bool) -> str:
    measured = next((score for score in found if isinstance(score, Score)), None)
    if measured is None:
        return ""
    text = (
        f"Data: the built-in demo, {measured.train:,} train crops and {measured.test:,} held-out crops of "
        f"{measured.classes} pictures; train and held-out crops have no pixel in common; chance is "
        f"{1 / measured.classes:.1%}. Protocol: DINO's. CLS token of the last layer, frozen, of centre crops that keep "
        f"{SHARE:g} of the short side; cosine similarity, votes weighted by exp(cosine / {TEMPERATURE:g}). ± is the "
        f"binomial standard error for n = {measured.test:,}; it underestimates the true one, since crops of one "
        "picture are correlated."
    )
    return text + (" The accuracy that a run logs is on its own held-out images, another test." if runs else "")
