"""`python -m dinoviz video`: track the objects of a first frame's mask through a video."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz.atomic_files import writing
from dinoviz.commands import common
from dinoviz.errors import DinovizError, check_share

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.video.io import Clip
    from dinoviz.video.tracking import Propagator, Settings

# The state has about 30 MB; after a kill -9 the frames since the last save are repeated.
SAVE_SECONDS = 10


def add(commands, options: argparse.ArgumentParser) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser("video", parents=[options], help="track the objects of a first frame's mask")
    parser.add_argument("clip", type=Path, metavar="CLIP", help="a video file, or a folder of frames")
    parser.add_argument("--mask", type=Path, required=True, help="mask of the first frame's size: 0 is background; a "
                        "palette image for several objects")  # fmt: skip
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use only every N-th frame")
    parser.add_argument("--published", action="store_true", help="use the settings of DINO's evaluation")
    parser.add_argument("--context", type=int, help="number of previous frames beside the first (default: 7)")
    parser.add_argument("--radius", type=int, help="largest distance of source patches (default: 12)")
    parser.add_argument("--top", type=int, help="number of source patches of a label (default: 5)")
    parser.add_argument("--temperature", type=float, help="of the softmax over similarities (default: 0.1)")
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="opacity of the objects' colours, 0 to 1 (default: 0.5)"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the masks of all frames, a video with the objects in colour, and a table of their areas.

    An interrupted run resumes at the first unfinished frame, and ends with the same files.
    """
    from dinoviz import features, mask_files, video
    from dinoviz.video import io as clips

    if options.every < 1:
        raise DinovizError(f"--every must be at least 1, not {options.every}.")
    check_share("opacity", options.opacity)
    settings = _settings(options)
    clip = clips.open_clip(options.clip)
    mask = video.check_mask(mask_files.read_mask(options.mask), clip.size)
    layers = (lambda layers: layers - 1) if options.published else features.part_layer
    backbone, layer = common.load(options, layers)
    with writing(options.out):
        return _Job(options, clip, mask, backbone, replace(settings, layers=(layer,))).run()


def _settings(options: argparse.Namespace) -> Settings:
    from dinoviz import video

    chosen = {name: getattr(options, name) for name in ("context", "radius", "top", "temperature")}
    base = video.PUBLISHED if options.published else video.Settings()
    return replace(base, **{name: value for name, value in chosen.items() if value is not None})


class _Job:
    """One video and its result files; a resumed run rewrites all of them except the masks."""

    def __init__(
        self, options: argparse.Namespace, clip: Clip, mask: np.ndarray, backbone: Backbone, settings: Settings
    ):
        self.clip, self.mask, self.backbone, self.settings = clip, mask, backbone, settings
        self.every, self.resolution, self.opacity = options.every, options.resolution, options.opacity
        self.out = options.out
        # Several videos may share an output folder.
        self.stem = clip.path.resolve().name if clip.path.is_dir() else clip.path.stem
        self.masks = self.out / f"{self.stem}-masks"
        self.unfinished = self.out / f"{self.stem}-unfinished.npz"
        self.objects = int(mask.max())
        self.skipped = self.done = 0
        self.names: deque[str] = deque()
        self.state: Propagator | None = None
        # What must be equal to resume a run; the settings are in the state.
        about = [_identity(clip), self.every, self.resolution, backbone.key, hashlib.sha256(mask.tobytes()).hexdigest()]
        self.note = json.dumps(about)

    def run(self) -> int:
        from tqdm import tqdm

        from dinoviz import render
        from dinoviz.video import io as clips

        areas, overlay = self.out / f"{self.stem}-areas.csv", self.out / f"{self.stem}-overlay"
        before = list(self.masks.glob("*.png"))
        if before and not (areas.exists() or self.unfinished.exists()):
            raise DinovizError(
                f"{self.masks} contains masks that are not from a run of this command: choose another --out."
            )
        self.state = self._load()
        self.masks.mkdir(parents=True, exist_ok=True)
        if self.state is None:
            for path in before:  # of an earlier run, perhaps of a longer video
                path.unlink()
        else:
            print(f"dinoviz: resuming after {self.state.index} frames")
        total = -(-self.clip.count // self.every) if self.clip.count else None
        failed = None
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=total, unit="frame"))
            video = stack.enter_context(clips.VideoWriter(overlay, self.clip.size, self.clip.rate / self.every))
            part = areas.with_name(areas.name + ".part")
            # Frames have the names of their files, which need not be UTF-8.
            table = stack.enter_context(part.open("w", newline="", encoding="utf-8", errors="backslashreplace"))
            rows = csv.writer(table)
            rows.writerow(["frame", *(f"object {i} (pixels)" for i in range(1, self.objects + 1))])
            try:
                for name, picture, mask in self._frames():
                    video.add(render.labels_picture(picture, mask, self.opacity))
                    rows.writerow([name, *_areas(mask, self.objects)])
                    self.done += 1
                    bar.update()
            except DinovizError as error:
                if not self.done:
                    raise
                failed = error  # the frames before it are valid
            except KeyboardInterrupt:
                self._save()
                raise
        Path(table.name).replace(areas)
        self.unfinished.unlink(missing_ok=True)
        if failed:
            print(f"dinoviz: {failed}", file=sys.stderr)
        print(f"dinoviz: {self.done} frames done, in {self.out}")
        return 2 if failed or self.skipped else 0

    def _frames(self) -> Iterator[tuple[str, Image.Image, np.ndarray]]:
        """Yield every frame with its name and mask: from files up to the saved state, then from the propagation."""
        from dinoviz import mask_files, video

        frames = self.clip.frames(self.every, self._skip)
        if state := self.state:
            for index in range(state.index):
                name, picture = next(frames)
                path = self.masks / f"{name}.png"
                if index == state.index - 1:  # the run may have been killed between saving the state and the mask
                    mask = state.mask(state.soft, picture) if index else self.mask
                    mask_files.write_mask(path, mask, self.objects)
                yield name, picture, mask_files.read_labels(path)
        saved = -float("inf")  # save the first state at once: it marks the folder as ours
        for tracked in video.propagate(
            self._named(frames), self.mask, self.backbone, resolution=self.resolution, settings=self.settings,
            state=self.state,
        ):  # fmt: skip
            self.state = tracked.state
            name = self.names.popleft()
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            mask_files.write_mask(self.masks / f"{name}.png", tracked.mask, self.objects)
            yield name, tracked.picture, tracked.mask

    def _named(self, frames: Iterator[tuple[str, Image.Image]]) -> Iterator[Image.Image]:
        for name, picture in frames:
            self.names.append(name)
            yield picture

    def _save(self) -> None:
        if self.state:
            self.state.note = self.note
            self.state.save(self.unfinished)

    def _load(self) -> Propagator | None:
        """The state of an interrupted run with the same arguments; None without one or if its masks are missing."""
        from dinoviz import video

        try:
            state = video.Propagator.load(self.unfinished, self.backbone.device)
        except DinovizError:
            return None
        if state.note != self.note or state.settings != self.settings:
            print("dinoviz: the unfinished run in this folder had other arguments: starting again")
            return None
        names = (name for name, _ in self.clip.frames(self.every, lambda error: None))
        done = all((self.masks / f"{name}.png").is_file() for name in islice(names, state.index - 1))
        return state if done else None

    def _skip(self, error: DinovizError) -> None:
        from tqdm import tqdm

        self.skipped += 1
        tqdm.write(f"dinoviz: {error}", file=sys.stderr)


def _areas(mask: np.ndarray, objects: int) -> list[int]:
    import numpy as np

    return np.bincount(mask.ravel(), minlength=objects + 1)[1:].tolist()


def _identity(clip: Clip) -> str:
    """A hash that changes when one of the files changes, without reading them."""
    about = [common.identity(file) for file in clip.files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
