"""`python -m dinoviz segment`: find what is marked in one picture, or clicked, in any number of pictures."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import __version__
from dinoviz.atomic_files import writing
from dinoviz.commands import common
from dinoviz.commands import segment_outputs as segment_files
from dinoviz.commands.resume_log import Journal
from dinoviz.commands.segment_outputs import COCO, ENDINGS, JOURNAL, TABLE
from dinoviz.errors import DinovizError, check_share

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.commands.segment_targets import Finder, Wanted
    from dinoviz.features import Features

FORMATS = ("png", "coco")
# Pictures that pass the network at once. On two busy cores 4 were 1.2 times as fast as 1 at 518 px, 1.5 times at 224.
BATCH, BATCH_CPU = 8, 4
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
    from dinoviz.commands import segment_targets as segment_finder
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
    with writing(options.out):
        segment_files.check_folder(options.out, options.images, inputs, (target for _, target in work))
    backbone = common.load_backbone(options)
    print(f"dinoviz: looking through {backbone.name}: {backbone.source}")
    finder = segment_finder.Finder(options, wanted, backbone)
    with writing(options.out), Journal(options.out / JOURNAL, _about(options, wanted, backbone)) as journal:
        return _Job(options, work, endings, backbone, finder, journal).run()


def batch_of(backbone: Backbone) -> int:
    """How many pictures pass the network at once."""
    return BATCH_CPU if backbone.device.type == "cpu" else BATCH


def _check(options: argparse.Namespace) -> None:
    """Refuse what makes no sense before anything is read."""
    from dinoviz.segment.few_shot import METHODS

    if not options.images:
        raise DinovizError("There are no targets: name pictures, or folders of them.")
    for name, known in (("format", FORMATS), ("method", METHODS)):
        if getattr(options, name) not in known:
            raise DinovizError(f"There is no {name} {getattr(options, name)!r}; there are {', '.join(known)}.")
    if options.threshold is not None:
        check_share("threshold", options.threshold)
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

        total, most = len(self.work), batch_of(self.backbone)
        # Batches always begin at the same targets, and one that is not done is done as a whole: in other company a
        # picture's features may differ in their last digits, and a run that goes on should end with the same files.
        batches = [self.work[i : i + most] for i in range(0, total, most)]
        left = [batch for batch in batches if not all(self._is_done(*work) for work in batch)]
        done = total - sum(map(len, left))
        if self.journal.stale:
            print("dinoviz: the unfinished run in this folder had other arguments, starting anew")
        elif self.journal.resumed:
            print(f"dinoviz: going on after {done} images")
        self._remove_old(left)
        with tqdm(total=total, initial=done, unit="image", disable=total == 1) as self.bar:
            for batch in left:
                self._do(batch)
        names = self.finder.wanted.names
        segment_files.write_table(self.out / TABLE, self._entries(), names)
        if self.coco:
            segment_files.write_coco(self.out / COCO, self._entries, names)
        self.journal.finish()
        print(f"dinoviz: {total - self.failed} of {total} done, in {self.out}")
        return 2 if self.failed else 0

    def _is_done(self, path: Path, target: Target) -> bool:
        """Whether an earlier run of the same arguments did this very file."""
        entry = self.journal.get(self._key(target))
        return (
            bool(entry)
            and entry["identity"] == common.identity(path)
            and all(target(e).is_file() for e in self.endings)
        )

    def _remove_old(self, left: Sequence[Sequence[Work]]) -> None:
        """What a run with other arguments made of these targets, so that nothing of it is taken for this one's."""
        for _, target in chain.from_iterable(left):
            for ending in ENDINGS:
                target(ending).unlink(missing_ok=True)
        for name in (TABLE, COCO):
            (self.out / name).unlink(missing_ok=True)

    def _do(self, batch: Sequence[Work]) -> None:
        """Encode neighbours of one model size at once, and write what is found in each."""
        from dinoviz.grid import PatchGrid
        from dinoviz.images import open_image

        alike = defaultdict(list)
        for path, target in batch:
            try:
                picture = open_image(path, name=str(path))
                self.finder.check(picture.size)
                grid = PatchGrid.fit(picture.size, self.resolution, self.backbone.patch_size)
                alike[grid.model_size].append((path, target, picture))
            except DinovizError as error:
                self._refuse(path, error)
                self.journal.add(self._key(target), {})  # whatever came of the file before it was damaged
        for group in alike.values():
            encoded = self.backbone.encode_batch([p for _, _, p in group], self.resolution, self.finder.layers)
            for (path, target, picture), features in zip(group, encoded, strict=True):
                self._write(path, target, picture, features)
                self.bar.update()

    def _write(self, path: Path, target: Target, picture: Image.Image, features: Features) -> None:
        labels, classes = self.finder.find(features, picture)
        segment_files.write_all(target, self.endings, picture, labels, len(self.finder.wanted.names))
        entry = {
            "name": str(path.relative_to(self.root) if self.root else path), "identity": common.identity(path),
            "width": picture.width, "height": picture.height, "classes": classes,
        }  # fmt: skip
        self.journal.add(self._key(target), entry)

    def _refuse(self, path: Path, error: DinovizError) -> None:
        self.failed += 1
        self.bar.write(common.refusal(path, error), file=sys.stderr)
        self.bar.update()

    def _entries(self) -> Iterator[dict]:
        """What was noted of each target, in their order, read from the journal one by one."""
        for _, target in self.work:
            if entry := self.journal.get(self._key(target)):
                yield entry

    def _key(self, target: Target) -> str:
        return str(target("").relative_to(self.out))
