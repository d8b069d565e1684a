"""What can tell depth from a look: the shipped probe, probes of runs, published networks; and what they say of it."""

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
NONE_HERE = (
    "There is no depth probe for {model}: a probe reads the features of one network and no other's. "
    "Train one in the Train tab (Depth probe), on pictures with depth or on your own with a teacher that tells it"
)


@dataclass(frozen=True, eq=False)
class Reading:
    """What one probe says of one look. about: of the probe, for files. source: in words, HTML."""

    depth: Depth
    source: str
    about: dict
    range: tuple[float, float]


def offers(bench: Workbench, look: Look) -> list[tuple[str, str]]:
    """(what to call it, its value) of all that can tell depth from the look's features, the best first."""
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


def none_here(look: Look) -> str:
    """Why nothing can tell depth, and what to do about it, as HTML."""
    published = published_depth.names_for(look.backbone.name)
    more = f"; or choose {published[0]} at “Told by”, a published network that is downloaded once" if published else ""
    return NONE_HERE.format(model=html.escape(look.backbone.name)) + more + "."


def is_published(chosen: str) -> bool:
    """Whether it is a network of its own, which has to run over the picture."""
    return chosen in published_depth.PUBLISHED


def is_ready(bench: Workbench, look: Look, chosen: str, above: bool = False) -> bool:
    """Whether `read` answers at once: no network has to run. Raises ProbeError for no probe of these weights."""
    _check_offered(bench, look, chosen)
    if is_published(chosen) or bench.is_derived(key(look, chosen, above)):
        return bench.is_derived(key(look, chosen, above))
    probe = _opened(bench, chosen)
    probe.check(look.backbone.weights_id, look.backbone.name)
    return _features(bench, look, probe, above) is not None


def fits(bench: Workbench, look: Look, chosen: str) -> bool:
    """Whether what was typed can tell depth from this look: a published network from any picture."""
    with suppress(ProbeError):
        return is_published(chosen) or _opened(bench, chosen).about["weights_id"] == look.backbone.weights_id
    return False


def read(bench: Workbench, look: Look, chosen: str, above: bool = False, job: Job | None = None) -> Reading:
    """What the chosen one says of the look; runs a network unless `is_ready`. Raises DinovizError.

    chosen: a value of `offers`, or on one's own machine a probe's file or run. above: from the look's own features;
    else from those at the resolution that the probe was trained at, where it errs least.
    """
    _check_offered(bench, look, chosen)

    def make() -> Reading:
        if is_published(chosen):
            return _published(bench, look, chosen, job)
        probe = _opened(bench, chosen)
        probe.check(look.backbone.weights_id, look.backbone.name)
        return _read(look, _features(bench, look, probe, above) or _encode(bench, look, probe, job), probe)

    return bench.derived(key(look, chosen, above), make)


def key(look: Look, chosen: str, above: bool = False) -> Hashable:
    """What decides a reading."""
    return "depth", look.key, above, chosen if is_published(chosen) else _file_key(chosen)


def _check_offered(bench: Workbench, look: Look, chosen: str) -> None:
    """Raises ProbeError on a public page for what is not on offer, before anything of it is looked at."""
    if bench.settings.public and chosen not in [value for _, value in offers(bench, look)]:
        raise ProbeError("There is no such probe here.")


def _file_key(path: str) -> Hashable:
    """As `file_key`, which reads the file whole: only of what can be a probe's."""
    file = depth.probe_file(path)
    with suppress(OSError, ValueError):
        if is_file(file) and file.stat().st_size <= MOST_BYTES:
            return file_key(str(file))
    raise ProbeError(f"{file.name} holds no depth probe: that is a file of at most {MOST_BYTES / 1e9:g} GB.")


def _features(bench: Workbench, look: Look, probe: Probe, above: bool) -> Features | None:
    """What the probe is to read, if it was encoded."""
    resolution = _resolution(bench, look, probe)
    if above or resolution == look.resolution:
        return look.features
    return bench.features_cache.peek(look.backbone, look.picture.digest, resolution, probe.layers)


def _encode(bench: Workbench, look: Look, probe: Probe, job: Job | None) -> Features:
    resolution = _resolution(bench, look, probe)

    def blocks(done: int, of: int) -> None:
        if job:
            job.tell(f"Encoding at {resolution} px, as the probe was trained", done / of)

    return bench.features(look.backbone, look.picture, resolution, probe.layers, blocks)


def _resolution(bench: Workbench, look: Look, probe: Probe) -> int:
    return bench.resolution(look.picture, look.backbone, probe.about["resolution"])


def _opened(bench: Workbench, path: str) -> Probe:
    return bench.derived(("probe", _file_key(path)), lambda: depth.open_probe(path))


def _read(look: Look, features: Features, probe: Probe) -> Reading:
    about = probe.about
    layers = ", ".join(str(layer + 1) for layer in probe.layers)
    rmse = next(filter(None, (_within(about, "metrics", part, "rmse") for part in ("test", "validation"))), None)
    measured = f", off by {rmse:.2f} m (RMSE) on pictures like it held out" if isinstance(rmse, int | float) else ""
    data = html.escape(str(_within(about, "data", "folder") or "?")[:200])
    source = (
        f"<b>{html.escape(str(about['head']))} probe</b> on layers {layers} of {look.backbone.layers}, "
        f"trained on {data}{measured}"
    )
    return Reading(depth.look(features, probe), source, about, probe.range)


def _within(about: dict, *keys: str) -> Any:
    """A value within objects within each other; None where one of them is missing, or is none."""
    found: Any = about
    for each in keys:
        found = found.get(each) if isinstance(found, dict) else None
    return found


def _published(bench: Workbench, look: Look, name: str, job: Job | None) -> Reading:
    if job:
        job.tell(f"Loading {name}")
    network = published_depth.load(name)

    def blocks(done: int, of: int) -> None:
        if job:
            job.tell(f"{name} looks at the picture", done / of)

    grid = look.features.grid.at(look.picture.shown.size)
    resolution = network.trained.short_side
    with bench.turn(PUBLISHED_BYTES):
        metres = network.predict(look.picture.shown, resolution, on_block=blocks)
    raw = grid.to_patches(metres)
    source = (
        f"<b>{html.escape(network.name)}</b>, a network of its own, which saw the picture at {resolution} px: "
        f"{html.escape(network.source)}"
    )
    about = {"published": network.name, "source": network.source, "depth": list(network.range)}
    return Reading(Depth(metres, None, raw, None, look.features.grid), source, about, network.range)
