"""Shared state of the page: loaded models, decoded pictures, features, and the jobs that compute them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from dinoviz import hub, models, render
from dinoviz.backbone import Backbone
from dinoviz.cache import FeatureCache, OnceCache, image_digest
from dinoviz.errors import DinovizError
from dinoviz.features import Features, Layers
from dinoviz.grid import PatchGrid
from dinoviz.images import ImageError, decode_bytes, open_image
from dinoviz.memory import encode_bytes, features_bytes
from dinoviz.ui.access import PUBLIC_MILLION_PARAMETERS, Settings
from dinoviz.ui.admission import Admission
from dinoviz.ui.jobs import Job, Made, current_owner
from dinoviz.ui.pictures import Picture, file_key, pixel_bytes
from training.runs.run import is_run_network, list_runs

# The long side of the pictures on the page: a click repaints several of them. Downloads have the full size.
DISPLAY_SIDES = (768, 1024)


@dataclass(frozen=True, eq=False)
class Look:
    """One picture encoded by one model at one resolution."""

    picture: Picture
    backbone: Backbone
    features: Features
    resolution: int

    @property
    def key(self) -> Hashable:
        """What the features depend on."""
        return self.backbone.key, self.picture.digest, self.resolution

    def about(self) -> dict:
        """Picture, weights and grid, for the about.json of a download."""
        grid = self.features.grid
        return {
            "picture": {"name": self.picture.name, "size": grid.image_size, "sha256_of_pixels": self.picture.digest},
            "weights": {"name": self.backbone.name, "source": self.backbone.source, "id": self.backbone.weights_id},
            "model_size": grid.model_size,
            "patch_size": grid.patch_size,
            "grid": grid.shape,
        }


class Workbench:
    """State that all users of the page share; each value is found by its content, never by its user."""

    def __init__(self, settings: Settings):
        hub.quiet_transformers()
        self.settings = settings
        self.hub_answers = hub.hub_answers()
        self.default_model = models.default_name(self.hub_answers)
        # In the status line, so that nobody takes the embedded weights for Meta's.
        self.default_reason = ""
        if self.default_model == "embedded":
            self.default_reason = "The default, since the Hugging Face Hub does not answer (or HF_HUB_OFFLINE is set)."
        self.features_cache = FeatureCache(settings.cache_bytes)
        self._models: OnceCache[Backbone] = OnceCache(settings.models_kept)
        self._pictures: OnceCache[Picture] = OnceCache(settings.cache_bytes // 8, size=lambda picture: picture.nbytes)
        # Full-size pixels are used once by a pass, and by downloads: decoded again where they do not fit.
        self._pixels: OnceCache[Image.Image] = OnceCache(settings.cache_bytes // 8, pixel_bytes, newest_stays=False)
        # Decoding never waits for a pass, so that a pass may wait for a decoded picture without deadlock.
        self._decodes = Admission(settings.job_bytes, at_once=2)
        self._passes = Admission(settings.job_bytes)  # more at once would not be faster
        self._derived: OnceCache = OnceCache(64)
        self._jobs: dict[Hashable, Job] = {}
        self._jobs_lock = threading.Lock()

    def model_names(self) -> list[str]:
        """Names of `models.KNOWN` that this page may load."""
        limit = PUBLIC_MILLION_PARAMETERS if self.settings.public else float("inf")
        return [name for name, known in models.KNOWN.items() if known.parameters <= limit]

    def model_choices(self, *, snapshots: bool = False) -> list[tuple[str, str]]:
        """All models to choose from, as (label, value to load): the known names, then the training runs.

        A public page does not list runs.

        Args:
            snapshots: also list the networks that runs saved during training.
        """
        names = [(name, name) for name in self.model_names()]
        if self.settings.public:
            return names
        folders = [folder for run in list_runs() for folder in run.networks(snapshots=snapshots)]
        return names + [(f"{models.run_name(folder)} (trained here)", str(folder)) for folder in folders]

    def backbone(self, name: str) -> Backbone:
        """The loaded model, as it is on the disk now. Raises ModelError."""
        self.check_model(name)
        return self._models.get((name, models.weights_stamp(name)), lambda: models.load(name))

    def check_model(self, name: str) -> None:
        """Raises ModelError on a public page for all but its listed names and training runs."""
        if self.settings.public and name not in self.model_names() and not is_run_network(name):
            raise models.ModelError(f"There is no model {name!r} here; choose one of {', '.join(self.model_names())}.")

    def loaded(self, name: str) -> Backbone | None:
        """The model, as it is on the disk now, if it is loaded, else None."""
        return self._models.peek((name, models.weights_stamp(name)))

    def picture(self, path: str) -> Picture:
        """The upload, decoded after a turn in the queue. Raises ImageError, and DinovizError if too many wait."""
        key = file_key(path)

        def make() -> Picture:
            with self._decode_turn(path):
                image = self._pixels.get(key, lambda: open_image(path))
                shown = render.display_copy(image, *DISPLAY_SIDES)
                again = partial(self._decode, path, key)
                return Picture(image.size, shown, image_digest(image), Path(path).name, again)

        return self._pictures.get(key, make)

    def _decode(self, path: str, key: Hashable) -> Image.Image:
        image = self._pixels.peek(key)
        if image is None:
            with self._decode_turn(path):
                if file_key(path) != key:
                    raise ImageError(f"{Path(path).name}: the file has changed or is gone, upload it again.")
                image = self._pixels.get(key, lambda: open_image(path))
        return image

    def _decode_turn(self, path: str) -> AbstractContextManager[None]:
        return self._decodes.turn(decode_bytes(path), *current_owner())

    def pass_turn(self, backbone: Backbone, patches: int, layers: Layers = (-1,)) -> AbstractContextManager[None]:
        """A turn for a forward pass over so many patches: every pass takes one, and only a few run at once.

        Within a turn, never wait for something that another pass computes. Raises DinovizError if too many wait, or
        the memory is too small.
        """
        return self.turn(encode_bytes(backbone, patches, layers))

    def turn(self, nbytes: int) -> AbstractContextManager[None]:
        """The same for any other network, which takes so many bytes."""
        return self._passes.turn(nbytes, *current_owner())

    def features(
        self,
        backbone: Backbone,
        picture: Picture,
        resolution: int,
        layers: Layers,
        on_block: Callable[[int, int], None] | None = None,
    ) -> Features:
        """The features of a picture, cached or from a forward pass after a turn in the queue. Raises DinovizError."""

        def encode() -> Features:
            patches = PatchGrid.fit(picture.size, resolution, backbone.patch_size).patches
            with self.pass_turn(backbone, patches, layers):
                self.features_cache.make_room(features_bytes(backbone, patches, layers))
                return backbone.encode(picture.image, resolution, layers, on_block=on_block)

        return self.features_cache.get(backbone, picture.digest, resolution, layers, encode)

    def look(self, path: str | None, model: str, resolution: int, job: Job | None = None, part=(0, 1)) -> Look:
        """Encode a picture with a model; instant if its features are cached. Raises DinovizError.

        Args:
            path: the upload.
            model: a name, Hub id or folder.
            resolution: the short side in model pixels.
            job: gets the progress.
            part: (i, n) for picture i of n that the job encodes.
        """
        if not path:
            raise DinovizError("There is no picture yet.")
        report = job.report if job else lambda *_: None
        number, count = part
        done = number / count
        picture = self.picture(path)
        report(lambda: f"Loading {model}{models.download_progress(model)}", done)
        backbone = self.backbone(model)
        encoding = f"Encoding picture {number + 1} of {count}" if count > 1 else "Encoding"
        report(encoding, done)
        resolution = self.resolution(picture, backbone, int(resolution))

        def on_block(block: int, blocks: int) -> None:
            report(encoding, (number + block / blocks) / count)

        features = self.features(backbone, picture, resolution, "all", on_block)
        return Look(picture, backbone, features, resolution)

    def peek(self, path: str | None, model: str, resolution: int) -> Look | None:
        """The look if picture, model and features are cached, else None; never decodes, loads or encodes."""
        backbone = self.loaded(model)
        picture = self._pictures.peek(file_key(path)) if path else None
        if picture is None or backbone is None:
            return None
        resolution = self.resolution(picture, backbone, int(resolution))
        features = self.features_cache.peek(backbone, picture.digest, resolution, "all")
        return features and Look(picture, backbone, features, resolution)

    @staticmethod
    def resolution(picture: Picture, backbone: Backbone, wanted: int) -> int:
        """The wanted resolution, or the largest that the bound on patches allows for a picture of this shape."""
        largest = PatchGrid.largest_resolution(picture.size, backbone.patch_size)
        if largest is None:
            raise DinovizError(f"{picture.name}: the aspect ratio is too large to be encoded: crop the picture.")
        return min(wanted, largest)

    def start(self, owner: Hashable, request: Hashable, work: Callable[[Job], Made]) -> Job[Made]:
        """Start work in the background, and stop the owner's earlier job, whose result is no longer needed.

        Args:
            owner: (session, name), where a page has several jobs at once.
            request: if the owner's present job has an equal one, that job is returned.
            work: called with the job; its value is the result.
        """
        with self._jobs_lock:
            earlier = self._jobs.get(owner)
            if earlier and earlier.request == request and not earlier.stopped:
                return earlier
            session = owner[0] if isinstance(owner, tuple) else owner
            job = self._jobs[owner] = Job(work, request, session)
        if earlier:
            earlier.superseded = True
            earlier.stop()
        return job

    def start_encode(
        self, owner: Hashable, paths: Sequence[str], model: str, resolution: int, *, skip_bad: bool = False
    ) -> Job[list[Look]]:
        """Encode pictures in the background; skip_bad: leave out those that cannot be read or encoded."""

        def work(job: Job) -> list[Look]:
            looks = []
            for i, path in enumerate(paths):
                with contextlib.suppress(*[DinovizError] if skip_bad else []):
                    looks.append(self.look(path, model, resolution, job, (i, len(paths))))
            return looks

        return self.start(owner, ("encode", *paths, model, resolution), work)

    def stop(self, owner: Hashable, *, superseded: bool = False) -> None:
        """Stop the owner's job, if there is one. superseded: because its result is no longer needed."""
        with self._jobs_lock:
            job = self._jobs.get(owner)
        if job:
            job.superseded = job.superseded or superseded
            job.stop()

    def is_busy(self, owner: Hashable) -> bool:
        """Whether the owner has a job."""
        with self._jobs_lock:
            return owner in self._jobs

    def finish(self, owner: Hashable, job: Job) -> None:
        """Forget a job that is done or abandoned."""
        with self._jobs_lock:
            if self._jobs.get(owner) is job:
                del self._jobs[owner]

    def warm_up(self, path: str, resolution: int) -> None:
        """Load the default model and encode one picture in the background, so that the first page is ready at once."""

        def work() -> None:
            # The page that encodes it shows the error.
            with contextlib.suppress(DinovizError):
                self.look(path, self.default_model, resolution)

        threading.Thread(target=work, daemon=True).start()

    def is_derived(self, key: Hashable) -> bool:
        """Whether `derived` has the value already."""
        return self._derived.peek(key) is not None

    def derived(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """A value computed once from features; the key names it and those features."""
        return self._derived.get(key, make)
