"""The Compare tab's k-NN figures: how well A and B tell held-out pictures of the built-in demo apart."""

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
BATCH = 16  # small, so that one sees how far it is


@dataclass(frozen=True)
class Score:
    """top1: the share told right by k neighbours, in the order of NEIGHBOURS; of `asked` pictures, by `known` ones."""

    model: str
    size: int
    known: int
    asked: int
    classes: int
    top1: tuple[float, ...]

    def error(self, share: float) -> float:
        """The binomial standard error of a share."""
        return (share * (1 - share) / self.asked) ** 0.5


def measure(bench: Workbench, kept: OnceCache, names: tuple[str, str], job: Job) -> list[Score | str]:
    """The scores of both, or a sentence in place of one that cannot be had; what was measured is kept."""
    found: list[Score | str] = []
    for i, (side, name) in enumerate(zip(SIDES, names, strict=True)):

        def tell(done: int, total: int, _: str, i: int = i, side: str = side) -> None:
            job.tell(f"{side}: encoding the demo's crops", (i + done / total) / len(names))

        job.tell(f"{side}: loading {name}", i / len(names))
        try:
            backbone = bench.backbone(name)
            found.append(kept.get(("k-NN", backbone.key), lambda b=backbone, t=tell: score(b, t)))
        except DinovizError as error:
            found.append(str(error))
    return found


def score(backbone: Backbone, tell: Callable[[int, int, str], None] = lambda *_: None) -> Score:
    """Weighted k-NN of the CLS token on the demo, as `training.evaluate` does it. tell: called as `embed` calls it."""
    train, held_out = demo("train"), demo("held-out")
    size = evaluation_size(backbone)
    total = len(train) + len(held_out)
    known = embed(backbone, train, batch=BATCH, progress=lambda done, _, what: tell(done, total, what))
    asked = embed(backbone, held_out, batch=BATCH, progress=lambda done, _, what: tell(len(train) + done, total, what))
    classes = len(train.classes)
    top1 = tuple(
        knn(known.features, train.labels, asked.features, held_out.labels, k=k, temperature=TEMPERATURE,
            classes=classes)
        for k in NEIGHBOURS
    )  # fmt: skip
    return Score(backbone.name, size, len(train), len(held_out), classes, top1)


def told_by_run(name: str) -> str:
    """The last k-NN that a run measured of itself, in words; of a snapshot, the last until then. "" where none is."""
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
    """The figures as HTML, with what they are of."""
    runs = [told_by_run(name) for name in names]
    heads = ["", "weights", *(f"{k}-NN" for k in NEIGHBOURS), "crop", *(["its own run says"] if any(runs) else [])]
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
        f"Data: the built-in demo. {measured.known:,} crops of {measured.classes} pictures are known; "
        f"{measured.asked:,} crops, of a part of each picture that has no pixel in common with those, are told; chance "
        f"is {1 / measured.classes:.1%}. Protocol: DINO's. The CLS token of the last layer, frozen, of centre crops "
        f"that keep {SHARE:g} of the short side; cosine, votes exp(cosine / {TEMPERATURE:g}). ± is the binomial "
        f"standard error of n = {measured.asked:,}; crops of one picture resemble each other, so that the true one is "
        "larger."
    )
    return text + (" A run's own figure is of its own held-out pictures and crops: another test." if runs else "")
