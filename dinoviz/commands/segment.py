"""`python -m dinoviz segment`: segment the object of a mask or of clicks in any number of pictures."""

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
from dinoviz.commands import common, segment_outputs
from dinoviz.commands.resume_log import ResumeLog
from dinoviz.commands.segment_outputs import COCO, LOG, SUFFIXES, TABLE
from dinoviz.errors import DinovizError, check_share

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.commands.segment_targets import Query, Segmenter
    from dinoviz.features import Features

FORMATS = ("png", "coco")
# Pictures per forward pass. On two busy cores 4 were 1.2 times as fast as 1 at 518 px, 1.5 times at 224.
BATCH, BATCH_CPU = 8, 4
DESCRIPTION = """
Segments an object in every target picture. The object is given by --reference and --mask, or by --point, on every
target or on the --reference. Masks have the size of the targets; if the object is not found, the mask is empty, and
COCO has no annotation, unless --keep-absent. segments.csv lists the results. With the same arguments, an interrupted
run resumes at the first unfinished target.
"""

Target = Callable[[str], Path]
Work = tuple[Path, Target]


def add(commands, _) -> None:
    """Add the parser of the command, without --layer: segmentation uses fixed layers."""
    parser = commands.add_parser(
        "segment", parents=[common.view_options(layer=False)], help="segment a marked object in many pictures",
        description=DESCRIPTION,
    )  # fmt: skip
    parser.add_argument("images", nargs="*", type=Path, metavar="TARGET", help="image files or folders")
    parser.add_argument("--reference", action="append", default=[], type=Path, metavar="IMAGE",
                        help="a picture of the object; may be repeated")  # fmt: skip
    parser.add_argument("--mask", action="append", default=[], type=Path, help="mask of the reference, of the same "
                        "size: 0 is background; grey labels, a palette or colours for several classes")  # fmt: skip
    parser.add_argument("--point", action="append", default=[], metavar="X,Y", help="a point on the object, in pixels")
    parser.add_argument("--negative", action="append", default=[], metavar="X,Y", help="a point on the background")
    parser.add_argument("--all-instances", action="store_true", help="with --point: all similar objects, not only "
                        "those with a point")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="of the score, 0 to 1 (default: calibrated)")
    parser.add_argument("--no-refine", action="store_true", help="do not refine masks along the edges of the picture")
    parser.add_argument("--smallest", type=float, default=0, metavar="PERCENT", help="drop components below this "
                        "percentage of the picture")  # fmt: skip
    parser.add_argument(
        "--method", default="evidence", help="evidence (default), or mean: the baseline, see segment.fit"
    )
    parser.add_argument("--debias", action="store_true", help="remove the positional component of the features")
    parser.add_argument(
        "--keep-absent", action="store_true", help="write the most likely mask also if the object is not found"
    )
    parser.add_argument("--format", default="png", help="png (default): 0 and 255, or a palette for several classes; "
                        "coco: annotations.json instead")  # fmt: skip
    parser.add_argument("--overlays", action="store_true", help="also write pictures with the masks overlaid")
    parser.add_argument("--cutouts", action="store_true", help="also write the objects cut out, with alpha")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the masks of all targets, and a table of results."""
    _check(options)
    from dinoviz.commands.segment_targets import Segmenter, read_query
    from dinoviz.images import find_images

    query = read_query(options)
    find_images(options.images)
    work = list(common.targets(options))
    chosen = (options.format == "png", options.overlays, options.cutouts)
    suffixes = [suffix for suffix, wanted in zip(SUFFIXES, chosen, strict=True) if wanted]
    inputs = [*options.reference, *options.mask, *(path for path, _ in work)]
    with writing(options.out):
        segment_outputs.check_folder(options.out, options.images, inputs, (target for _, target in work))
    backbone = common.load_backbone(options)
    print(f"dinoviz: using {backbone.name}: {backbone.source}")
    segmenter = Segmenter(options, query, backbone)
    with writing(options.out), ResumeLog(options.out / LOG, _about(options, query, backbone)) as log:
        return _Job(options, work, suffixes, backbone, segmenter, log).run()


def batch_of(backbone: Backbone) -> int:
    """Number of pictures per forward pass."""
    return BATCH_CPU if backbone.device.type == "cpu" else BATCH


def _check(options: argparse.Namespace) -> None:
    """Check option values before anything is read."""
    from dinoviz.segment.few_shot import METHODS

    if not options.images:
        raise DinovizError("There are no targets: give image files or folders.")
    for name, known in (("format", FORMATS), ("method", METHODS)):
        if getattr(options, name) not in known:
            raise DinovizError(f"There is no {name} {getattr(options, name)!r}: choose {' or '.join(known)}.")
    if options.threshold is not None:
        check_share("threshold", options.threshold)
    if not 0 <= options.smallest <= 100:
        raise DinovizError(f"--smallest must be 0 to 100 percent of the picture, not {options.smallest}.")


def _about(options: argparse.Namespace, query: Query, backbone: Backbone) -> dict:
    """What must be equal to resume a run; the list of targets may differ."""
    names = ("threshold", "no_refine", "smallest", "method", "debias", "all_instances", "resolution", "keep_absent",
             "format", "overlays", "cutouts")  # fmt: skip
    chosen = {name: getattr(options, name) for name in names}
    return {"dinoviz": __version__, "weights": backbone.key, "marks": query.digest(), **chosen}


class _Job:
    """Segments the targets that are not done yet, with one batch in memory at a time."""

    def __init__(
        self, options: argparse.Namespace, work: Sequence[Work], suffixes: Sequence[str], backbone: Backbone,
        segmenter: Segmenter, log: ResumeLog,
    ):  # fmt: skip
        self.work, self.suffixes, self.backbone, self.segmenter, self.log = work, suffixes, backbone, segmenter, log
        self.out, self.resolution, self.coco = options.out, options.resolution, options.format == "coco"
        # File names in COCO are relative to the folder of pictures.
        self.root = options.images[0] if len(options.images) == 1 and options.images[0].is_dir() else None
        self.failed = 0

    def run(self) -> int:
        from tqdm import tqdm

        total, most = len(self.work), batch_of(self.backbone)
        # Batches always start at the same targets, and an unfinished batch is repeated as a whole: in another batch the
        # features of a picture may differ in their last digits, and a resumed run should end with the same files.
        batches = [self.work[i : i + most] for i in range(0, total, most)]
        left = [batch for batch in batches if not all(self._is_done(*work) for work in batch)]
        done = total - sum(map(len, left))
        if self.log.stale:
            print("dinoviz: the unfinished run in this folder had other arguments: starting again")
        elif self.log.resumed:
            print(f"dinoviz: resuming after {done} images")
        self._remove_old(left)
        with tqdm(total=total, initial=done, unit="image", disable=total == 1) as self.bar:
            for batch in left:
                self._do(batch)
        names = self.segmenter.query.names
        segment_outputs.write_table(self.out / TABLE, self._entries(), names)
        if self.coco:
            segment_outputs.write_coco(self.out / COCO, self._entries, names)
        self.log.finish()
        print(f"dinoviz: {total - self.failed} of {total} done, in {self.out}")
        return 2 if self.failed else 0

    def _is_done(self, path: Path, target: Target) -> bool:
        """Whether an earlier run with the same arguments has done this file."""
        entry = self.log.get(self._key(target))
        return (
            entry is not None
            and entry.get("identity") == common.identity(path)
            and all(target(suffix).is_file() for suffix in self.suffixes)
        )

    def _remove_old(self, left: Sequence[Sequence[Work]]) -> None:
        """Remove results of runs with other arguments for these targets."""
        for _, target in chain.from_iterable(left):
            for suffix in SUFFIXES:
                target(suffix).unlink(missing_ok=True)
        for name in (TABLE, COCO):
            (self.out / name).unlink(missing_ok=True)

    def _do(self, batch: Sequence[Work]) -> None:
        """Encode pictures of one model size together, and write the results of each."""
        from dinoviz.grid import PatchGrid
        from dinoviz.images import open_image

        groups = defaultdict(list)
        for path, target in batch:
            try:
                picture = open_image(path, name=str(path))
                self.segmenter.check(picture.size)
                grid = PatchGrid.fit(picture.size, self.resolution, self.backbone.patch_size)
                groups[grid.model_size].append((path, target, picture))
            except DinovizError as error:
                self._refuse(path, error)
                self.log.add(self._key(target), {})  # drop the results from before it was damaged
        for group in groups.values():
            encoded = self.backbone.encode_batch([p for _, _, p in group], self.resolution, self.segmenter.layers)
            for (path, target, picture), features in zip(group, encoded, strict=True):
                self._write(path, target, picture, features)
                self.bar.update()

    def _write(self, path: Path, target: Target, picture: Image.Image, features: Features) -> None:
        labels, classes = self.segmenter.label_map(features, picture)
        segment_outputs.write_all(target, self.suffixes, picture, labels, len(self.segmenter.query.names))
        entry = {
            "name": str(path.relative_to(self.root) if self.root else path), "identity": common.identity(path),
            "width": picture.width, "height": picture.height, "classes": classes,
        }  # fmt: skip
        self.log.add(self._key(target), entry)

    def _refuse(self, path: Path, error: DinovizError) -> None:
        self.failed += 1
        self.bar.write(common.refusal(path, error), file=sys.stderr)
        self.bar.update()

    def _entries(self) -> Iterator[dict]:
        """The log entries of the targets in order, read one by one."""
        for _, target in self.work:
            if entry := self.log.get(self._key(target)):
                yield entry

    def _key(self, target: Target) -> str:
        return str(target("").relative_to(self.out))
