"""The pictures in which an object is searched: encoded once and kept small, so that hundreds fit in memory."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz import render, segment
from dinoviz.cache import OnceCache
from dinoviz.errors import DinovizError
from dinoviz.features import Features, LayerTokens
from dinoviz.grid import PatchGrid
from dinoviz.images import open_image
from dinoviz.ui.jobs import Job
from dinoviz.ui.pictures import file_key
from dinoviz.ui.workbench import Workbench

MAX_TARGETS = 500
THUMB = 260  # the long side in the gallery
SESSIONS = 1000
MASKS_AND_CONCEPTS = 24  # cached, for the handlers of one click to share
NOTHING = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Target:
    """One picture without its pixels at full size. halved: float16 features of the layers that segmentation uses."""

    path: str
    name: str
    digest: str
    size: tuple[int, int]
    jpeg: bytes
    thumb: Image.Image
    halved: Features

    @property
    def features(self) -> Features:
        """The features in float32, as the views expect them."""
        return _with_type(self.halved, np.float32)

    @property
    def shown(self) -> Image.Image:
        """The copy that is shown large, decoded anew."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")

    @property
    def full(self) -> Image.Image:
        """The picture as uploaded, decoded anew. Raises ImageError if the file is gone."""
        return open_image(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.halved.nbytes + len(self.jpeg) + 3 * self.thumb.width * self.thumb.height


@dataclass(frozen=True)
class Refused:
    """A file that cannot be read or encoded, and why in one sentence."""

    path: str
    name: str
    reason: str
    nbytes: int = 0


class Targets:
    """Targets by file, model and resolution, within half of the memory for features."""

    def __init__(self, bench: Workbench):
        self.bench = bench
        # Its own cache: each click makes some, and must not push out an attention rollout.
        self.derived = OnceCache(MASKS_AND_CONCEPTS)
        self._turns: OnceCache[threading.Lock] = OnceCache(SESSIONS)
        self._cache: OnceCache[Target | Refused] = OnceCache(
            bench.settings.cache_bytes // 2, lambda target: target.nbytes
        )

    def turn(self, session: str) -> threading.Lock:
        """A lock for work of which one session may do only one at a time."""
        return self._turns.get(session, threading.Lock)

    def peek(self, path: str, model: str, resolution: str) -> Target | Refused | None:
        """The target if it is encoded, else None; never decodes, loads or encodes."""
        backbone = self.bench.loaded(model)
        return backbone and self._cache.peek((file_key(path), backbone.key, int(resolution)))

    def get(
        self, path: str, model: str, resolution: str, on_block: Callable[[int, int], None] | None = None
    ) -> Target | Refused:
        """The target, encoded unless it is cached. Raises what loading the model raises."""
        backbone = self.bench.backbone(model)
        key = file_key(path), backbone.key, int(resolution)

        def make() -> Target | Refused:
            try:
                return self._encode(path, backbone, int(resolution), on_block)
            except DinovizError as error:
                return Refused(path, Path(path).name, str(error))

        return self._cache.get(key, make)

    def _encode(self, path: str, backbone, resolution: int, on_block) -> Target:
        picture = self.bench.picture(path)
        resolution = self.bench.resolution(picture, backbone, resolution)
        # The picture of the bar is encoded already, with all layers.
        features = self.bench.features_cache.peek(backbone, picture.digest, resolution, "all")
        if features is None:
            grid = PatchGrid.fit(picture.size, resolution, backbone.patch_size)
            layers = segment.layers_of(backbone.layers)
            with self.bench.pass_turn(backbone, grid.patches, layers):
                features = backbone.encode(picture.image, resolution, layers, on_block=on_block)
        jpeg = io.BytesIO()
        picture.shown.save(jpeg, format="JPEG", quality=92)
        thumb = render.display_copy(picture.shown, 1, THUMB)
        return Target(path, picture.name, picture.digest, picture.size, jpeg.getvalue(), thumb, _light(features))

    def start(self, owner: Hashable, paths: Sequence[str], model: str, resolution: str) -> Job[None]:
        """Encode in the background; a picture that cannot be encoded becomes Refused, and the others go on."""

        def work(job: Job) -> None:
            job.report(f"Loading {model}")
            self.bench.backbone(model)
            for i, path in enumerate(paths):
                encoding = f"Encoding picture {i + 1} of {len(paths)}"
                job.report(encoding, i / len(paths))

                def on_block(block: int, blocks: int, i: int = i, encoding: str = encoding) -> None:
                    job.report(encoding, (i + block / blocks) / len(paths))

                self.get(path, model, resolution, on_block)

        return self.bench.start(owner, ("targets", *paths, model, resolution), work)


def checked(paths: Sequence[str] | None) -> list[str]:
    """Each file once. Raises DinovizError for more than MAX_TARGETS."""
    paths = list(dict.fromkeys(paths or []))
    if len(paths) > MAX_TARGETS:
        raise DinovizError(
            f"{len(paths)} pictures: at most {MAX_TARGETS} at once; use `python -m dinoviz segment` for more."
        )
    return paths


def _light(features: Features) -> Features:
    """Only what segmentation uses: no queries, keys and norms, in float16."""
    wanted = set(segment.layers_of(features.layers))
    captured = {
        layer: LayerTokens(tokens.patches, NOTHING, NOTHING, NOTHING, NOTHING)
        for layer, tokens in features.captured.items()
        if layer in wanted
    }
    return _with_type(replace(features, captured=captured), np.float16)


def _with_type(features: Features, dtype: type) -> Features:
    patches = features.patches.astype(dtype)
    captured = {
        # The last layer's patches are `patches` itself, stored once.
        layer: replace(tokens, patches=patches if layer == features.layers - 1 else tokens.patches.astype(dtype))
        for layer, tokens in features.captured.items()
    }
    return replace(features, patches=patches, captured=captured)
