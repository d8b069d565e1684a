"""What a depth probe is trained on, as the page has it: pictures with their depth, or a teacher that tells it."""

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
NO_DEPTH = "These pictures have no depth: choose who tells it, or take a zip file or folder with rgb and depth in it."


@dataclass(frozen=True)
class DepthSource:
    """As `Source`, for a probe. teacher: who tells the depth, as `ProbeConfig` has it; "" where it is beside them."""

    source: Source
    teacher: str = ""

    def find(self) -> Pictures | None:
        """The pictures that the teacher is to look at; None where they have their depth. Raises DinovizError."""
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
        """How many pictures there are. Raises DinovizError."""
        found = self.find()
        return len(self._with_depth(self._given()) if found is None else found)

    def names(self) -> list[str]:
        """What to call the data in a command, which takes one name."""
        names = self.source.names()
        return names if len(names) < 2 else ["images"]

    def paths(self, folder: Path) -> tuple[str, ...]:
        """Where a run finds its data, once `bring` has put into its folder what is no folder yet."""
        return (str(place(self._given(), folder.absolute())),)

    def bring(self, folder: Path) -> None:
        """Put what is no folder yet into one of the run. Raises DinovizError."""
        given, (path,) = self._given(), self.paths(folder)
        if [Path(path)] != given:
            unpack(given, Path(path), with_depth=not self.teacher)

    @property
    def held_out_path(self) -> str:
        """Of a folder with depth that is not trained on; "" where nobody named any."""
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
    """What the demo is for a teacher, for the page."""
    return f"{len(DEMO_PICTURES)} pictures that come with scikit-image and scikit-learn, whole."


def teachers(bench: Workbench, model: str) -> list[tuple[str, str]]:
    """(what to call it, its value) of all that can tell depth to a probe on this model, the pictures' own first."""
    found = [("The pictures have their depth", OWN)]
    if model != "embedded" and depth.SHIPPED.is_file():  # it reads the features of that
        found.append(("NYU Depth v2, rooms (shipped probe)", SHIPPED))
    for name in dict.fromkeys(head for known in bench.model_names() for head in published_depth.names_for(known)):
        if bench.hub_answers or hub.is_cached(name):
            found.append((f"{name} ({published_depth.PUBLISHED[name].scenes})", name))
    if not bench.settings.public:
        taught = [run for run in list_runs() if depth.probe_file(run.folder).is_file()]
        found += [(f"{run.name} (trained here)", str(run.folder)) for run in taught]
    return found


def teacher_of(bench: Workbench, source: Source, chosen: str | None) -> str:
    """What was chosen or typed, as `ProbeConfig` has it. Raises DinovizError.

    On one's own machine also a published head that the Hub may give later, a run's name, and what lies in the folders
    that are open: a probe's file, a run, a published head's folder.
    """
    chosen = (chosen or "").strip()
    if chosen in ("", OWN):
        return ""
    if chosen == SHIPPED and depth.SHIPPED.is_file():
        return str(depth.SHIPPED)
    if chosen in [value for _, value in teachers(bench, "")]:
        return chosen
    if bench.settings.public:
        raise DataError("There is no such teacher here: choose one of the list.")
    if chosen in published_depth.PUBLISHED:
        return chosen
    named = next((run.folder for run in list_runs() if chosen in (run.name, str(run.folder))), None)
    if named is not None:
        if not depth.probe_file(named).is_file():
            raise DataError(f"The run {named.name} holds no finished depth probe, it can teach none.")
        return str(named)
    path = source.allowed(chosen)
    source.check_inside(str(file) for file in (path, *path.glob("*"), *path.glob("export/*")))
    if depth.probe_file(path).is_file():
        depth.open_probe(path)
    elif not (path / "config.json").is_file() or (path / "checkpoints").is_dir():
        raise DataError(f"{short(chosen)} is no teacher: no depth probe's file or run, nor a published head's folder.")
    return str(path)


def teacher_name(teacher: str) -> str:
    """What to call it on the page."""
    if teacher == str(depth.SHIPPED):
        return "the shipped probe"
    return teacher if teacher in published_depth.PUBLISHED else file_name(teacher)


def _below(given: list[Path]) -> Iterable[str]:
    """What the run will look at in a folder: also hidden files."""
    return map(str, find_images(given)) if len(given) == 1 and given[0].is_dir() else ()
