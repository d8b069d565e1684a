"""What to train on, as the page has it: the demo, uploads, or a folder of this machine that its operator allowed."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinoviz.images import SUFFIXES
from dinoviz.ui.jobs import Job
from dinoviz.ui.shared import file_name
from dinoviz.ui.workbench import Workbench
from training.config.pretrain import PretrainConfig
from training.data.dataset import too_many
from training.data.demo import DEMO as DEMO_PICTURES
from training.data.demo import DEMO_CROPS, DEMO_SIZE
from training.data.preview import Preview, preview
from training.data.sources import DataError, Member, Pictures, Where, find

DEMO, UPLOAD, FOLDER = "demo", "upload", "folder"
LISTS = (".txt", ".csv")
TAKEN = (".zip", *LISTS, *SUFFIXES)
NAMED = 3  # broken pictures, in a message
LONGEST = 80  # characters of what was typed, in a message


@dataclass(frozen=True)
class Source:
    """Where the pictures are. files: uploads, in gradio's cache. path: of a folder, zip file or list."""

    where: str
    files: tuple[str, ...] = ()
    path: str = ""
    held_out: str = ""
    roots: tuple[Path, ...] = ()

    def find(self) -> Pictures | None:
        """The pictures; None for the demo. Raises DinovizError."""
        if self.where == DEMO:
            return None
        pictures = find(self.given())
        self.check_inside(pictures.where)
        if self.held_out_path:
            self.check_inside(find(self.held_out_path).where)
        return pictures

    def names(self) -> list[str]:
        """What to call the data in a command."""
        if self.where == UPLOAD:
            return [file_name(file) for file in self.files]
        return [self.path] if self.where == FOLDER and self.path else []

    def kept(self, folder: Path) -> dict[str, Path]:
        """Where each upload goes below this folder of a run: the page forgets its own copies after some hours."""
        if self.where != UPLOAD:
            return {}
        places = {}
        for number, file in enumerate(self.files):
            # Two may have the same name, and a name with a dot first would be hidden.
            numbered = f"{number:05}-{file_name(file)}"
            if _is_image(file):
                places[file] = folder / "images" / numbered
            else:
                places[file] = folder / (file_name(file) if len(self.files) == 1 else numbered)
        return places

    def paths(self, folder: Path) -> tuple[str, ...]:
        """What a run is told to train on, once `bring` has put uploads into its folder; () for the demo."""
        if self.where == FOLDER:
            return (str(self.allowed(self.path)),)
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
        return str(self.allowed(self.held_out)) if self.held_out and self.where == FOLDER else ""

    def given(self) -> list[Path]:
        """The folder or the files, none of which is outside of what is open. Raises DataError."""
        if self.where == FOLDER:
            return [self.allowed(self.path)]
        if not self.files:
            raise DataError("There are no pictures yet: drop a zip file or many images.")
        for file in self.files:
            suffix = Path(file).suffix.lower()
            if suffix not in TAKEN:
                raise DataError(f"{file_name(file)} is no zip file, list (.txt, .csv) or image.")
            if suffix in LISTS and not self.roots:  # not even whether a file is there is to be learnt
                raise DataError(f"{file_name(file)} lists files of this machine, which are not open to this page.")
            if not Path(file).is_file():
                raise DataError(f"{file_name(file)} is here no more, uploads are kept for some hours: drop it again.")
        return [Path(file) for file in dict.fromkeys(self.files)]

    def allowed(self, path: str) -> Path:
        """The path, below one of the roots; symbolic links do not lead out of them. Raises DataError."""
        if not self.roots:
            raise DataError("Folders of this machine are not open to this page; upload a zip file.")
        if not path.strip():
            raise DataError(f"Name a folder, a zip file or a list below {_listed(self.roots)}.")
        inside = list(filter(None, (_below(root, path.strip()) for root in self.roots)))
        if not inside:
            raise DataError(
                f"{short(path)} is not below {_listed(self.roots)}: `python app.py --data FOLDER` opens another."
            )
        there = next(filter(os.path.exists, inside), None)
        if there is None:
            raise DataError(f"{short(path)}: there is no such file or folder below {_listed(self.roots)}.")
        return there

    def check_inside(self, files: Iterable[Where]) -> None:
        """A list may name any file of the machine, and links may lead anywhere. Raises DataError."""
        own = set(map(os.path.realpath, self.files))
        roots = [os.path.realpath(root) for root in self.roots]
        for file in files:
            if not isinstance(file, str):  # inside a zip file that was given
                continue
            real = os.path.realpath(file)
            if real not in own and not any(Path(real).is_relative_to(root) for root in roots):
                raise DataError(f"{file_name(file)} is listed or linked, but lies outside of what this page may read.")


def _below(root: Path, path: str) -> Path | None:
    """The real path, if it is below the root: neither `..` nor symbolic links lead out."""
    try:
        real = Path(os.path.realpath(root / Path(path).expanduser()))
    except (OSError, ValueError, RuntimeError):  # no path at all: a null byte, or the home of nobody
        return None
    return real if real.is_relative_to(os.path.realpath(root)) else None


def short(path: str) -> str:
    """What was typed, for a message."""
    words = " ".join(path.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"


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


def surveyed(bench: Workbench, pictures: Pictures, job: Job) -> Preview:
    """A look at the pictures, done once; the job is told how far it is."""
    return bench.derived(_key(pictures), lambda: preview(pictures, progress=job.tell))


def check_broken(bench: Workbench, pictures: Pictures, share: float, knob: str = " (max broken)") -> None:
    """Raises DataError where a look at the pictures has found more broken ones than a run leaves out.

    knob: what that share is called on the page.
    """
    key = _key(pictures)
    if not bench.is_derived(key):
        return
    broken = bench.derived(key, lambda: preview(pictures)).broken
    if too_many(len(broken), len(pictures), share):
        raise DataError(
            f"{len(broken)} of {len(pictures):,} pictures cannot be read, more than the {share:.0%} that this run may "
            f"leave out{knob}: {_which(broken)}.",
            broken,
        )


def _key(pictures: Pictures) -> tuple:
    """Another when a picture is added, removed, written anew or of another class."""
    labels = None if pictures.labels is None else pictures.labels.tobytes()
    files = {where.archive if isinstance(where, Member) else where for where in _places(pictures)}
    written = tuple((file, _written(file)) for file in sorted(files))
    return "survey", hash((pictures.names, pictures.classes, labels, written))


def _places(pictures: Pictures) -> Iterable[str | Member]:
    return (where for where in pictures.where if not isinstance(where, np.ndarray))


def _written(file: str) -> tuple[int, int] | None:
    try:
        about = Path(file).stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size


def _which(broken: Sequence[tuple[str, str]]) -> str:
    more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return "; ".join(reason.removesuffix(".") for _, reason in broken[:NAMED]) + more


def in_words(seen: Preview, *, classes: bool = True) -> str:
    """What was found, as HTML. classes: whether it matters that there are none."""
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
    elif classes:
        lines.append("No classes: the pictures are not in folders of their own.")
    if seen.broken:
        share = len(seen.broken) / seen.looked
        fate = "and would be left out"
        if too_many(len(seen.broken), seen.looked, PretrainConfig.max_broken):
            fate = f"more than the {PretrainConfig.max_broken:.0%} that a run leaves out"
        lines.append(
            f'<span class="dv-error">{len(seen.broken)} cannot be read ({share:.1%}), {fate}: '
            f"{html.escape(_which(seen.broken))}.</span>"
        )
    return "<br>".join(lines)


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in SUFFIXES
