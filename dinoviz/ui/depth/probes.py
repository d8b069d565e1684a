"""The depth predictors for a look and their predictions: the shipped probe, probes of runs, published networks."""

from __future__ import annotations

import html
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dinoviz import depth
from dinoviz.depth import dpt as published_depth
from dinoviz.depth.probe import Depth, Probe, ProbeError
from dinoviz.features import Features
from dinoviz.ui.jobs import Job
from dinoviz.ui.workbench import Look, Workbench, file_key
from training.runs.files import is_file
from training.runs.run import list_runs

PUBLISHED = "published by Meta"
MOST_BYTES = 10**9  # of a probe's file; three heads on four layers of a giant network have 0.4 GB
PUBLISHED_BYTES = 2**29  # of a pass at 480 px, about
NO_PROBE = (
    "There is no depth probe for {model}: a probe reads the features of one network only. Train one in the Train tab "
    "(Depth probe), on pictures with depth, or on your own pictures with depth labels from a teacher network"
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The depth of one look. source: what predicted it, as HTML; about: the same for files. range: in metres."""

    depth: Depth
    source: str
    about: dict
    range: tuple[float, float]


def choices(bench: Workbench, look: Look) -> list[tuple[str, str]]:
    """(label, value) of all that can predict depth from the look's features, the best first."""
    found = []
    with suppress(ProbeError):
        if _opened(bench, str(depth.SHIPPED)).about["weights_id"] == look.backbone.weights_id:
            found.append(("NYU Depth v2, rooms (shipped)", str(depth.SHIPPED)))
    if not bench.settings.public:
        for run in list_runs():
            file = depth.probe_file(run.folder)
            with suppress(ProbeError):
                if is_file(file) and _opened(bench, str(file)).about["weights_id"] == look.backbone.weights_id:
                    found.append((f"{run.name} (trained here)", str(file)))
    return found + [(f"{name} ({PUBLISHED})", name) for name in published_depth.names_for(look.backbone.name)]


def no_probe(look: Look) -> str:
    """Why there is no depth probe for this model, and what to do, as HTML."""
    published = published_depth.names_for(look.backbone.name)
    more = f"; or choose {published[0]}, a published network that is downloaded once" if published else ""
    return NO_PROBE.format(model=html.escape(look.backbone.name)) + more + "."


def first(bench: Workbench, look: Look) -> str:
    """The first of `choices`. Raises ProbeError where there is none."""
    known = choices(bench, look)
    if not known:
        raise ProbeError(f"There is no depth probe for {look.backbone.name}.")
    return known[0][1]


def selected(bench: Workbench, look: Look, chosen: str | None) -> str | None:
    """The chosen value if it can predict depth for this look, else the first that can, else None."""
    known = [value for _, value in choices(bench, look)]
    typed = chosen and not bench.settings.public and is_compatible(bench, look, chosen)
    if chosen in known or typed:
        return chosen
    # A published network needs a download and a pass, so it is used only where the user selects it.
    return next((value for value in known if not is_published(value)), None)


def is_published(chosen: str) -> bool:
    """Whether it is a published network, which has its own backbone and has to run on the picture."""
    return chosen in published_depth.PUBLISHED


def is_ready(bench: Workbench, look: Look, chosen: str, above: bool = False) -> bool:
    """Whether `predict` needs to run no network. Raises ProbeError for what is no probe of these weights."""
    _check_offered(bench, look, chosen)
    if is_published(chosen) or bench.is_derived(key(look, chosen, above)):
        return bench.is_derived(key(look, chosen, above))
    probe = _opened(bench, chosen)
    probe.check(look.backbone.weights_id, look.backbone.name)
    return _features(bench, look, probe, above) is not None


def is_compatible(bench: Workbench, look: Look, chosen: str) -> bool:
    """Whether a typed value can predict depth for this look; a published network can for any."""
    with suppress(ProbeError):
        return is_published(chosen) or _opened(bench, chosen).about["weights_id"] == look.backbone.weights_id
    return False


def predict(bench: Workbench, look: Look, chosen: str, above: bool = False, job: Job | None = None) -> Prediction:
    """The depth of the look; runs a network unless `is_ready`.

    Args:
        chosen: a value of `choices`, or on a local app a probe's file or run
        above: from the look's own features; else from features at the probe's training resolution, where its error is
            smallest
        job: reports the progress
    Raises:
        DinovizError: for what is no probe of these weights, or cannot be loaded
    """
    _check_offered(bench, look, chosen)

    def make() -> Prediction:
        if is_published(chosen):
            return _published(bench, look, chosen, job)
        probe = _opened(bench, chosen)
        probe.check(look.backbone.weights_id, look.backbone.name)
        return _predict(look, _features(bench, look, probe, above) or _encode(bench, look, probe, job), probe)

    return bench.derived(key(look, chosen, above), make)


def key(look: Look, chosen: str, above: bool = False) -> Hashable:
    """What a prediction depends on."""
    return "depth", look.key, above, chosen if is_published(chosen) else _file_key(chosen)


def _check_offered(bench: Workbench, look: Look, chosen: str) -> None:
    """Raises ProbeError on a public page for what is not in the list, before any file of it is opened."""
    if bench.settings.public and chosen not in [value for _, value in choices(bench, look)]:
        raise ProbeError("There is no such probe here.")


def _file_key(path: str) -> Hashable:
    """`file_key`, which reads the whole file, for files that can hold a probe only. Raises ProbeError."""
    file = depth.probe_file(path)
    with suppress(OSError, ValueError):
        if is_file(file) and file.stat().st_size <= MOST_BYTES:
            return file_key(str(file))
    raise ProbeError(f"{file.name} holds no depth probe, which is a file of at most {MOST_BYTES / 1e9:g} GB.")


def _features(bench: Workbench, look: Look, probe: Probe, above: bool) -> Features | None:
    """The features that the probe reads; None where they are not encoded."""
    resolution = _resolution(bench, look, probe)
    if above or resolution == look.resolution:
        return look.features
    return bench.features_cache.peek(look.backbone, look.picture.digest, resolution, probe.layers)


def _encode(bench: Workbench, look: Look, probe: Probe, job: Job | None) -> Features:
    resolution = _resolution(bench, look, probe)

    def blocks(done: int, of: int) -> None:
        if job:
            job.report(f"Encoding at {resolution} px, the probe's training resolution", done / of)

    return bench.features(look.backbone, look.picture, resolution, probe.layers, blocks)


def _resolution(bench: Workbench, look: Look, probe: Probe) -> int:
    return bench.resolution(look.picture, look.backbone, probe.about["resolution"])


def _opened(bench: Workbench, path: str) -> Probe:
    return bench.derived(("probe", _file_key(path)), lambda: depth.open_probe(path))


def _predict(look: Look, features: Features, probe: Probe) -> Prediction:
    about = probe.about
    layers = ", ".join(str(layer + 1) for layer in probe.layers)
    rmse = next(filter(None, (_within(about, "metrics", part, "rmse") for part in ("test", "validation"))), None)
    measured = f", RMSE {rmse:.2f} m on held-out pictures" if isinstance(rmse, int | float) else ""
    data = html.escape(str(_within(about, "data", "folder") or "?")[:200])
    source = (
        f"<b>{html.escape(str(about['head']))} probe</b> on layers {layers} of {look.backbone.layers}, "
        f"trained on {data}{measured}"
    )
    return Prediction(depth.look(features, probe), source, about, probe.range)


def _within(about: dict, *keys: str) -> Any:
    """A value within nested dicts; None where a key is missing or leads to no dict."""
    found: Any = about
    for each in keys:
        found = found.get(each) if isinstance(found, dict) else None
    return found


def _published(bench: Workbench, look: Look, name: str, job: Job | None) -> Prediction:
    if job:
        job.report(f"Loading {name}")
    network = published_depth.load(name)

    def blocks(done: int, of: int) -> None:
        if job:
            job.report(f"Predicting with {name}", done / of)

    grid = look.features.grid.at(look.picture.shown.size)
    resolution = network.trained.short_side
    with bench.turn(PUBLISHED_BYTES):
        metres = network.predict(look.picture.shown, resolution, on_block=blocks)
    raw = grid.to_patches(metres)
    source = (
        f"<b>{html.escape(network.name)}</b>, a published network with its own backbone, at {resolution} px: "
        f"{html.escape(network.source)}"
    )
    about = {"published": network.name, "source": network.source, "depth": list(network.range)}
    return Prediction(Depth(metres, None, raw, None, look.features.grid), source, about, network.range)
