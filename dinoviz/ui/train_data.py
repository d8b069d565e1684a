"""What to train on, as the page has it: the demo, uploads, or a folder of this machine that its operator allowed."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinoviz.images import SUFFIXES
from dinoviz.ui.parts import file_name
from dinoviz.ui.workbench import Job, Workbench, file_key
from training.data import DEMO as DEMO_PICTURES
from training.data import DEMO_CROPS, DEMO_SIZE
from training.pictures import DataError, Pictures, find
from training.rgbd import find_pairs
from training.survey import Survey, survey

DEMO, UPLOAD, FOLDER = "demo", "upload", "folder"
TAKEN = (".zip", ".txt", ".csv", *SUFFIXES)


@dataclass(frozen=True)
class Source:
    """Where the pictures are. files: uploads, in gradio's cache. path: of a folder, zip file or list."""

    where: str
    files: tuple[str, ...] = ()
    path: str = ""
    held_out: str = ""
    roots: tuple[Path, ...] = ()

    def find(self, *, depth: bool = False) -> Pictures | None:
        """The pictures; None for the demo. depth: they must have their depth beside them. Raises DinovizError."""
        if depth:
            return self._with_depth()
        if self.where == DEMO:
            return None
        pictures = find(self._given())
        self._check_inside(pictures)
        if self.held_out:
            self._check_inside(find(self._allowed(self.held_out)))
        return pictures

    def names(self) -> list[str]:
        """What to call the data in a command."""
        return [file_name(file) for file in self.files] if self.where == UPLOAD else [self.path] if self.path else []

    def kept(self, folder: Path) -> dict[str, Path]:
        """Where each upload goes below this folder of a run: the page forgets its own copies after some hours."""
        if self.where != UPLOAD:
            return {}
        single = len(self.files) == 1
        places = {}
        for number, file in enumerate(self.files):
            name = file_name(file) if single else f"{number:05}-{file_name(file)}"
            places[file] = folder / ("images" if _is_image(file) else ".") / name
        return places

    def paths(self, folder: Path) -> tuple[str, ...]:
        """What a run is told to train on, once `bring` has put uploads into its folder; () for the demo."""
        if self.where == FOLDER:
            return (str(self._allowed(self.path)),)
        kept = self.kept(folder.absolute())
        archives = [str(place) for file, place in kept.items() if not _is_image(file)]
        return (*archives, *([str(folder.absolute() / "images")] if len(archives) < len(kept) else []))

    def bring(self, folder: Path) -> None:
        """Put the uploads into a folder of a run: hard links where the file system allows them, else copies."""
        for file, place in self.kept(folder).items():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)

    @property
    def held_out_path(self) -> str:
        """Of labelled pictures that are not trained on; "" where nobody named any."""
        return str(self._allowed(self.held_out)) if self.held_out and self.where == FOLDER else ""

    def pairs(self) -> int:
        """How many pictures have their depth. Raises DinovizError."""
        self._with_depth()
        return len(find_pairs(self._allowed(self.path)))

    def _given(self) -> list[Path]:
        if self.where == FOLDER:
            return [self._allowed(self.path)]
        if not self.files:
            raise DataError("There are no pictures yet: drop a zip file or many images.")
        for file in self.files:
            if Path(file).suffix.lower() not in TAKEN:
                raise DataError(f"{file_name(file)} is no zip file, list (.txt, .csv) or image.")
        return [Path(file) for file in self.files]

    def _with_depth(self) -> None:
        if self.where != FOLDER:
            raise DataError("A depth probe needs a folder of this machine, with rgb and depth in it.")
        for path in filter(None, (self.path, self.held_out)):
            find_pairs(self._allowed(path))

    def _allowed(self, path: str) -> Path:
        """The path, below one of the roots; symbolic links do not lead out of them."""
        if not self.roots:
            raise DataError("Folders of this machine are not open to this page; upload a zip file.")
        if not path.strip():
            raise DataError(f"Name a folder, a zip file or a list below {_listed(self.roots)}.")
        given = Path(path.strip()).expanduser()
        for root in self.roots:
            real = Path(os.path.realpath(root / given))
            if real.is_relative_to(os.path.realpath(root)):
                return real
        raise DataError(f"{path} is not below {_listed(self.roots)}: `python app.py --data FOLDER` opens another.")

    def _check_inside(self, pictures: Pictures) -> None:
        """A list may name any file of the machine."""
        own = [os.path.realpath(file) for file in (*self.files, *self.roots)]
        for where in pictures.where:
            if isinstance(where, str) and not any(Path(os.path.realpath(where)).is_relative_to(each) for each in own):
                raise DataError(f"{file_name(where)} is listed, but lies outside of what this page may read.")


def _listed(roots: Sequence[Path]) -> str:
    return " or ".join(str(root) for root in roots)


def demo_words() -> str:
    """What the demo is, for the page."""
    count = len(DEMO_PICTURES)
    return (
        f"{DEMO_CROPS['train'] * count} crops of {count} pictures that come with scikit-image and scikit-learn, "
        f"{DEMO_SIZE} px; the class is the picture. {DEMO_CROPS['held-out'] * count} crops of other parts of them are "
        "held out."
    )


def surveyed(bench: Workbench, source: Source, pictures: Pictures, job: Job) -> Survey:
    """A look at the pictures, done once; the job is told how far it is."""
    key = ("survey", source.where, source.path, tuple(map(file_key, source.files)), len(pictures))
    return bench.derived(key, lambda: survey(pictures, tell=job.tell))


def in_words(seen: Survey) -> str:
    """What was found, as HTML."""
    lines = [f"<b>{seen.count:,} pictures</b>"]
    if seen.looked < seen.count:
        lines[0] += f", of which {seen.looked} were looked at"
    if seen.sizes:
        sides = np.array(seen.sizes)
        (w0, h0), (w1, h1) = sides.min(0), sides.max(0)
        lines.append(f"Sides from {min(w0, h0)} to {max(w1, h1)} px, the short one {seen.side} px in the middle.")
    if seen.classes:
        shown = [f"{html.escape(name)} {count:,}" for name, count in list(seen.classes.items())[:20]]
        more = f" and {len(seen.classes) - 20} more" if len(seen.classes) > 20 else ""
        lines.append(f"{len(seen.classes)} classes: {', '.join(shown)}{more}.")
    else:
        lines.append("No classes: the pictures are not in folders of their own.")
    if seen.broken:
        share = len(seen.broken) / seen.looked
        which = "; ".join(html.escape(reason) for _, reason in seen.broken[:3])
        more = f" and {len(seen.broken) - 3} more" if len(seen.broken) > 3 else ""
        lines.append(
            f'<span class="dv-error">{len(seen.broken)} cannot be read ({share:.1%}), and would be left out: '
            f"{which}{more}</span>"
        )
    return "<br>".join(lines)


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in SUFFIXES
