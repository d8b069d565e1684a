"""The training data of a depth probe: pictures with depth, or pictures for which a teacher predicts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dinoviz import depth, hub
from dinoviz.depth import dpt as published_depth
from dinoviz.images import find_images
from dinoviz.ui.shared import file_name
from dinoviz.ui.train.image_data import DEMO, FOLDER, Source, short
from dinoviz.ui.workbench import Workbench
from training.data.demo import DEMO as DEMO_PICTURES
from training.data.sources import DataError, Pictures
from training.depth.rgbd import find_pairs
from training.depth.unpack import ZippedPairs, pictures, place, unpack, zipped_pairs
from training.runs.run import list_runs

OWN, SHIPPED = "own", "shipped"
NO_DEPTH = "These pictures have no depth: choose a teacher, or take a zip file or folder with rgb and depth in it."


@dataclass(frozen=True)
class DepthSource:
    """As `Source`, for a probe. teacher: as in `ProbeConfig`; "" for pictures with depth."""

    source: Source
    teacher: str = ""

    def find(self) -> Pictures | None:
        """The pictures for the teacher; None for pictures with depth. Raises DinovizError."""
        source = self.source
        if source.where == FOLDER and source.held_out:
            self._pairs(source.allowed(source.held_out))
        given = self._given()
        if not self.teacher:
            self._with_depth(given)
            return None
        found = pictures(given)
        if given:
            source.check_inside(found.where)
            source.check_inside(_below(given))
        return found

    def count(self) -> int:
        """The number of pictures. Raises DinovizError."""
        found = self.find()
        return len(self._with_depth(self._given()) if found is None else found)

    def names(self) -> list[str]:
        """The data's name in a command, which takes one."""
        names = self.source.names()
        return names if len(names) < 2 else ["images"]

    def paths(self, folder: Path) -> tuple[str, ...]:
        """The folder of a run's data, which `bring` makes where the source is not a folder."""
        return (str(place(self._given(), folder.absolute())),)

    def bring(self, folder: Path) -> None:
        """Put data that is not a folder yet into one of the run. Raises DinovizError."""
        given, (path,) = self._given(), self.paths(folder)
        if [Path(path)] != given:
            unpack(given, Path(path), with_depth=not self.teacher)

    @property
    def held_out_path(self) -> str:
        """The held-out folder with depth; "" without one."""
        return self.source.held_out_path

    def _given(self) -> list[Path]:
        return [] if self.source.where == DEMO else self.source.given()

    def _with_depth(self, given: list[Path]) -> list | ZippedPairs:
        if len(given) == 1 and given[0].is_dir():
            return self._pairs(given[0])
        if len(given) == 1 and given[0].suffix.lower() == ".zip":
            return zipped_pairs(given[0])
        raise DataError(NO_DEPTH)

    def _pairs(self, folder: Path) -> list:
        pairs = find_pairs(folder)
        self.source.check_inside(str(file) for pair in pairs for file in (pair.image, pair.depth))
        return pairs


def demo_words() -> str:
    """The demo's pictures for a teacher, in words."""
    return f"{len(DEMO_PICTURES)} pictures that come with scikit-image and scikit-learn, whole."


def teachers(bench: Workbench, model: str) -> list[tuple[str, str]]:
    """(label, value) of the sources of depth labels for a probe on this model, the pictures' own first."""
    found = [("The pictures' own depth", OWN)]
    if model != "embedded" and depth.SHIPPED.is_file():  # the shipped probe is on the embedded weights
        found.append(("NYU Depth v2, rooms (shipped probe)", SHIPPED))
    for name in dict.fromkeys(head for known in bench.model_names() for head in published_depth.names_for(known)):
        if bench.hub_answers or hub.is_cached(name):
            found.append((f"{name} ({published_depth.PUBLISHED[name].scenes})", name))
    if not bench.settings.public:
        probes = [run for run in list_runs() if depth.probe_file(run.folder).is_file()]
        found += [(f"{run.name} (trained here)", str(run.folder)) for run in probes]
    return found


def teacher_of(bench: Workbench, source: Source, chosen: str | None) -> str:
    """The chosen or typed teacher, as `ProbeConfig` takes it. Raises DinovizError.

    A page that is not public also takes a published head that is not cached yet, a run's name, and in the allowed
    folders a probe's file, a run, or a published head's folder.
    """
    chosen = (chosen or "").strip()
    if chosen in ("", OWN):
        return ""
    if chosen == SHIPPED and depth.SHIPPED.is_file():
        return str(depth.SHIPPED)
    if chosen in [value for _, value in teachers(bench, "")]:
        return chosen
    if bench.settings.public:
        raise DataError("There is no such teacher here: choose one from the list.")
    if chosen in published_depth.PUBLISHED:
        return chosen
    named = next((run.folder for run in list_runs() if chosen in (run.name, str(run.folder))), None)
    if named is not None:
        if not depth.probe_file(named).is_file():
            raise DataError(f"The run {named.name} has no finished depth probe, so it cannot be a teacher.")
        return str(named)
    path = source.allowed(chosen)
    source.check_inside(str(file) for file in (path, *path.glob("*"), *path.glob("export/*")))
    if depth.probe_file(path).is_file():
        depth.open_probe(path)
    elif not (path / "config.json").is_file() or (path / "checkpoints").is_dir():
        raise DataError(
            f"{short(chosen)} is not a teacher: that is a depth probe's file or run, or a published head's folder."
        )
    return str(path)


def teacher_name(teacher: str) -> str:
    """Its name on the page."""
    if teacher == str(depth.SHIPPED):
        return "the shipped probe"
    return teacher if teacher in published_depth.PUBLISHED else file_name(teacher)


def _below(given: list[Path]) -> Iterable[str]:
    """The images of a folder that the run will read, with hidden files."""
    return map(str, find_images(given)) if len(given) == 1 and given[0].is_dir() else ()
