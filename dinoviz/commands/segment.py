"""`python -m dinoviz segment`: find what is marked in one picture, or clicked, in any number of pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import __version__
from dinoviz.commands import common, segment_files
from dinoviz.commands.journal import Journal
from dinoviz.commands.segment_files import COCO, ENDINGS, JOURNAL, TABLE
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.commands.segment_finder import Finder, Wanted

FORMATS = ("png", "coco")
BATCH = 8  # pictures that pass a GPU at once
DESCRIPTION = """
Either --reference and --mask show a thing, or several, and it is looked for in every target; or --point is clicked
on every target itself, or on the --reference whose mask comes from that. Masks have the targets' own size; where a
thing is absent its mask is empty, and COCO has no annotation, unless --keep-absent. segments.csv tells which. A run
that was interrupted goes on with the first target that is not done, if all arguments are the same.
"""

Target = Callable[[str], Path]
Work = tuple[Path, Target]


def add(commands, _) -> None:
    """Add the parser of the command, which chooses its layers itself."""
    parser = commands.add_parser(
        "segment", parents=[common.looking(layer=False)], help="find what is marked in one picture in others",
        description=DESCRIPTION,
    )  # fmt: skip
    parser.add_argument("images", nargs="*", type=Path, metavar="TARGET", help="files, or folders of them")
    parser.add_argument("--reference", action="append", default=[], type=Path, metavar="IMAGE",
                        help="a picture of the thing; may be given several times")  # fmt: skip
    parser.add_argument("--mask", action="append", default=[], type=Path, help="of the reference, of its size: what "
                        "is not 0 is the thing; grey labels, a palette or colours hold several classes")  # fmt: skip
    parser.add_argument("--point", action="append", default=[], metavar="X,Y", help="on the thing, in pixels")
    parser.add_argument("--negative", action="append", default=[], metavar="X,Y", help="beside the thing")
    parser.add_argument("--all-instances", action="store_true", help="with --point: all that is alike, not only what "
                        "is connected with a point")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="of the score, 0 to 1; by default calibrated")
    parser.add_argument("--no-refine", action="store_true", help="do not follow the picture's edges")
    parser.add_argument("--smallest", type=float, default=0, metavar="PERCENT", help="of the picture; smaller pieces "
                        "are dropped")  # fmt: skip
    parser.add_argument("--method", default="evidence", help="evidence (default), or mean: the textbook")
    parser.add_argument("--debias", action="store_true", help="remove what patches tell of their position")
    parser.add_argument("--keep-absent", action="store_true", help="write where a thing would be if it were there")
    parser.add_argument("--format", default="png", help="png (default): 0 and 255, or a palette for several classes; "
                        "coco: annotations.json instead")  # fmt: skip
    parser.add_argument("--overlays", action="store_true", help="also pictures with the masks over them")
    parser.add_argument("--cutouts", action="store_true", help="also the things alone, with alpha")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the masks of all targets, and a table of what is where."""
    _check(options)
    from dinoviz.commands import segment_finder
    from dinoviz.images import find_images

    wanted = segment_finder.read(options)
    find_images(options.images)
    work = list(common.targets(options))
    endings = [
        ending
        for ending, chosen in zip(ENDINGS, (options.format == "png", options.overlays, options.cutouts), strict=True)
        if chosen
    ]
    inputs = [*options.reference, *options.mask, *(path for path, _ in work)]
    with common.writing(options.out):
        segment_files.check_folder(options.out, options.images, inputs, (target for _, target in work))
    backbone = common.load_backbone(options)
    print(f"dinoviz: looking through {backbone.name}: {backbone.source}")
    finder = segment_finder.Finder(options, wanted, backbone)
    with common.writing(options.out), Journal(options.out / JOURNAL, _about(options, wanted, backbone)) as journal:
        return _Job(options, work, endings, backbone, finder, journal).run()


def _check(options: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is read."""
    from dinoviz.evidence import METHODS

    if not options.images:
        raise DinovizError("There are no targets: name pictures, or folders of them.")
    for name, known in (("format", FORMATS), ("method", METHODS)):
        if getattr(options, name) not in known:
            raise DinovizError(f"There is no {name} {getattr(options, name)!r}; there are {', '.join(known)}.")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise DinovizError(f"The threshold is a number from 0 to 1, not {options.threshold}.")
    if not 0 <= options.smallest <= 100:
        raise DinovizError(f"The smallest area is 0 to 100 percent of the picture, not {options.smallest}.")


def _about(options: argparse.Namespace, wanted: Wanted, backbone: Backbone) -> dict:
    """What must be the same for a run to go on; what was done of other targets is good all the same."""
    names = ("threshold", "no_refine", "smallest", "method", "debias", "all_instances", "resolution", "keep_absent",
             "format", "overlays", "cutouts")  # fmt: skip
    chosen = {name: getattr(options, name) for name in names}
    return {"dinoviz": __version__, "weights": backbone.key, "marks": wanted.digest(), **chosen}


class _Job:
    """The targets that are to be done and what was done; a target at a time, or a batch, is in memory."""

    def __init__(
        self, options: argparse.Namespace, work: Sequence[Work], endings: Sequence[str], backbone: Backbone,
        finder: Finder, journal: Journal,
    ):  # fmt: skip
        self.work, self.endings, self.backbone, self.finder, self.journal = work, endings, backbone, finder, journal
        self.out, self.resolution, self.coco = options.out, options.resolution, options.format == "coco"
        # COCO's file names are read relative to a folder of pictures.
        self.root = options.images[0] if len(options.images) == 1 and options.images[0].is_dir() else None
        self.failed = 0

    def run(self) -> int:
        from tqdm import tqdm

        left = self._left()
        if self.journal.stale:
            print("dinoviz: the unfinished run in this folder had other arguments, starting anew")
        total = len(self.work)
        with tqdm(total=total, initial=total - len(left), unit="image", disable=total == 1) as self.bar:
            for batch in self._batches(left):
                self._do(batch)
                self.bar.update(len(batch))
        names = self.finder.wanted.names
        segment_files.write_table(self.out / TABLE, self._entries(), names)
        if self.coco:
            segment_files.write_coco(self.out / COCO, self._entries, names)
        self.journal.finish()
        print(f"dinoviz: {total - self.failed} of {total} done, in {self.out}")
        return 2 if self.failed else 0

    def _left(self) -> list[Work]:
        """The targets that no earlier run of the same arguments did, their old files removed."""
        left = []
        for path, target in self.work:
            entry = self.journal.get(self._key(target))
            if entry and entry["identity"] == _identity(path) and all(target(e).is_file() for e in self.endings):
                continue
            for ending in ENDINGS:  # of a run with other arguments
                target(ending).unlink(missing_ok=True)
            left.append((path, target))
        for name in (TABLE, COCO):
            (self.out / name).unlink(missing_ok=True)
        if len(self.journal):
            print(f"dinoviz: going on after {len(self.work) - len(left)} images")
        return left

    def _batches(self, work: Sequence[Work]) -> Iterator[list[tuple[Path, Target, Image.Image]]]:
        """Neighbours of one model size, on a GPU; on a CPU several at once gain nothing."""
        from dinoviz.images import PatchGrid, open_image

        most = 1 if self.backbone.device.type == "cpu" else BATCH
        batch, size = [], None
        for path, target in work:
            try:
                picture = open_image(path, name=str(path))
                self.finder.check(picture.size)
                model_size = PatchGrid.fit(picture.size, self.resolution, self.backbone.patch_size).model_size
            except DinovizError as error:
                self._refuse(path, error)
                continue
            if batch and (model_size != size or len(batch) == most):
                yield batch
                batch = []
            batch.append((path, target, picture))
            size = model_size
        if batch:
            yield batch

    def _do(self, batch: Sequence[tuple[Path, Target, Image.Image]]) -> None:
        pictures = [picture for _, _, picture in batch]
        encoded = self.backbone.encode_batch(pictures, self.resolution, self.finder.layers)
        for (path, target, picture), features in zip(batch, encoded, strict=True):
            labels, classes = self.finder.find(features, picture)
            segment_files.write_all(target, self.endings, picture, labels, len(self.finder.wanted.names))
            entry = {
                "name": str(path.relative_to(self.root) if self.root else path), "identity": _identity(path),
                "width": picture.width, "height": picture.height, "classes": classes,
            }  # fmt: skip
            self.journal.add(self._key(target), entry)

    def _refuse(self, path: Path, error: DinovizError) -> None:
        from dinoviz.images import ImageError

        self.failed += 1
        about = "" if isinstance(error, ImageError) else f"{path}: "  # which says its name itself
        self.bar.write(f"dinoviz: {about}{error}", file=sys.stderr)
        self.bar.update()

    def _entries(self) -> Iterator[dict]:
        """What was noted of each target, in their order, read from the journal one by one."""
        for _, target in self.work:
            if entry := self.journal.get(self._key(target)):
                yield entry

    def _key(self, target: Target) -> str:
        return str(target("").relative_to(self.out))


def _identity(path: Path) -> list:
    """What changes when a file does, without reading it."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]
