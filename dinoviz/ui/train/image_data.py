"""The training data of a run: the demo, uploads, or a folder of this machine that the operator allowed."""

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
ACCEPTED = (".zip", *LISTS, *SUFFIXES)
NAMED = 3  # unreadable pictures, in a message
LONGEST = 80  # characters of typed text, in a message


@dataclass(frozen=True)
class Source:
    """Where the pictures are. where: DEMO, UPLOAD or FOLDER. path: of a folder, zip file or list below `roots`."""

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
        """The data's names in a command."""
        if self.where == UPLOAD:
            return [file_name(file) for file in self.files]
        return [self.path] if self.where == FOLDER and self.path else []

    def places(self, folder: Path) -> dict[str, Path]:
        """The place of each upload below a folder of a run: the page removes its own copies after some hours."""
        if self.where != UPLOAD:
            return {}
        found = {}
        for number, file in enumerate(self.files):
            # Two may have the same name, and a name with a dot first would be hidden.
            numbered = f"{number:05}-{file_name(file)}"
            if _is_image(file):
                found[file] = folder / "images" / numbered
            else:
                found[file] = folder / (file_name(file) if len(self.files) == 1 else numbered)
        return found

    def paths(self, folder: Path) -> tuple[str, ...]:
        """The `data` of a run's configuration, once `bring` has copied uploads into its folder; () for the demo."""
        if self.where == FOLDER:
            return (str(self.allowed(self.path)),)
        places = self.places(folder.absolute())
        archives = [str(place) for file, place in places.items() if not _is_image(file)]
        return (*archives, *([str(folder.absolute() / "images")] if len(archives) < len(places) else []))

    def bring(self, folder: Path) -> None:
        """Put the uploads into a folder of a run: as hard links where the file system allows them, else as copies."""
        for file, place in self.places(folder).items():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)

    @property
    def held_out_path(self) -> str:
        """The path of held-out labelled pictures; "" without any."""
        return str(self.allowed(self.held_out)) if self.held_out and self.where == FOLDER else ""

    def given(self) -> list[Path]:
        """The folder or the files, all of them allowed. Raises DataError."""
        if self.where == FOLDER:
            return [self.allowed(self.path)]
        if not self.files:
            raise DataError("There are no pictures yet: drop a zip file or many images.")
        for file in self.files:
            suffix = Path(file).suffix.lower()
            if suffix not in ACCEPTED:
                raise DataError(f"{file_name(file)} is not a zip file, list (.txt, .csv) or image.")
            if suffix in LISTS and not self.roots:  # the answer must not reveal whether a listed file exists
                raise DataError(f"{file_name(file)} lists files of this machine, which this page may not read.")
            if not Path(file).is_file():
                raise DataError(f"{file_name(file)} was removed, as uploads are after some hours: drop it again.")
        return [Path(file) for file in dict.fromkeys(self.files)]

    def allowed(self, path: str) -> Path:
        """The path, below one of the roots; symbolic links do not lead out of them. Raises DataError."""
        if not self.roots:
            raise DataError("This page may not read folders of this machine: upload a zip file.")
        if not path.strip():
            raise DataError(f"Name a folder, a zip file or a list below {_listed(self.roots)}.")
        inside = list(filter(None, (_below(root, path.strip()) for root in self.roots)))
        if not inside:
            raise DataError(
                f"{short(path)} is not below {_listed(self.roots)}: allow another with `python app.py --data FOLDER`."
            )
        there = next(filter(os.path.exists, inside), None)
        if there is None:
            raise DataError(f"{short(path)}: there is no such file or folder below {_listed(self.roots)}.")
        return there

    def check_inside(self, files: Iterable[Where]) -> None:
        """Raises DataError for a file outside `files` and `roots`: lists and links may lead anywhere."""
        own = set(map(os.path.realpath, self.files))
        roots = [os.path.realpath(root) for root in self.roots]
        for file in files:
            if not isinstance(file, str):  # inside a zip file that was given
                continue
            real = os.path.realpath(file)
            if real not in own and not any(Path(real).is_relative_to(root) for root in roots):
                raise DataError(
                    f"{file_name(file)} is listed or linked, but this page may not read it: it lies outside."
                )


def _below(root: Path, path: str) -> Path | None:
    """The real path, if it is below the root: neither `..` nor symbolic links lead out."""
    try:
        real = Path(os.path.realpath(root / Path(path).expanduser()))
    except (OSError, ValueError, RuntimeError):  # not a path: a null byte, or the home of an unknown user
        return None
    return real if real.is_relative_to(os.path.realpath(root)) else None


def short(path: str) -> str:
    """Typed text, for a message."""
    words = " ".join(path.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"


def _listed(roots: Sequence[Path]) -> str:
    return " or ".join(str(root) for root in roots)


def demo_words() -> str:
    """The demo in words."""
    count = len(DEMO_PICTURES)
    return (
        f"{DEMO_CROPS['train'] * count} crops of {count} pictures that come with scikit-image and scikit-learn, "
        f"{DEMO_SIZE} px; the class is the picture. {DEMO_CROPS['held-out'] * count} crops of other parts of them are "
        "held out."
    )


def cached_preview(bench: Workbench, pictures: Pictures, job: Job) -> Preview:
    """`preview` of the pictures, computed once; the job gets the progress."""
    return bench.derived(_key(pictures), lambda: preview(pictures, progress=job.report))


def check_broken(bench: Workbench, pictures: Pictures, share: float, knob: str = " (max broken)") -> None:
    """Raises DataError if a preview has found more unreadable pictures than a run may leave out.

    share: that may be left out. knob: the name of its setting on the page.
    """
    key = _key(pictures)
    if not bench.is_derived(key):
        return
    broken = bench.derived(key, lambda: preview(pictures)).broken
    if too_many(len(broken), len(pictures), share):
        raise DataError(
            f"{len(broken)} of {len(pictures):,} pictures cannot be read; this run may leave out at most {share:.0%}"
            f"{knob}: {_named(broken)}.",
            broken,
        )


def _key(pictures: Pictures) -> tuple:
    """Changes when a picture is added, removed, written again or of another class."""
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


def _named(broken: Sequence[tuple[str, str]]) -> str:
    more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return "; ".join(reason.removesuffix(".") for _, reason in broken[:NAMED]) + more


def preview_words(found: Preview, *, classes: bool = True) -> str:
    """HTML of a preview. classes: whether to say that there are none."""
    lines = [f"<b>{found.count:,} pictures</b>"]
    if found.looked < found.count:
        lines[0] += f", of which {found.looked} were decoded"
    if found.sizes:
        sides = np.array(found.sizes)
        (w0, h0), (w1, h1) = sides.min(0), sides.max(0)
        lines.append(f"Sides from {min(w0, h0)} to {max(w1, h1)} px; the median of the short sides is {found.side} px.")
    if found.classes:
        shown = [f"{html.escape(name)} {count:,}" for name, count in list(found.classes.items())[:20]]
        more = f" and {len(found.classes) - 20} more" if len(found.classes) > 20 else ""
        lines.append(f"{len(found.classes)} classes: {', '.join(shown)}{more}.")
    elif classes:
        lines.append("No classes: they would be the names of the pictures' folders.")
    if found.broken:
        share = len(found.broken) / found.looked
        result = "and would be left out"
        if too_many(len(found.broken), found.looked, PretrainConfig.max_broken):
            result = f"more than the {PretrainConfig.max_broken:.0%} that a run may leave out"
        lines.append(
            f'<span class="dv-error">{len(found.broken)} cannot be read ({share:.1%}), {result}: '
            f"{html.escape(_named(found.broken))}.</span>"
        )
    return "<br>".join(lines)


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in SUFFIXES
