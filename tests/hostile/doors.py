"""The doors: each takes a file and ends, raises DinovizError or gives a command's exit status; all else is a defect.

A door is called in a worker, see `tests.hostile.worker`, with the file and a `Room`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MOST = 12  # frames of a clip, files of a folder: what comes after them is no other


@dataclass
class Room:
    """Where doors work. good: a folder with what is right; work: an empty folder of this call."""

    good: Path
    work: Path

    @cached_property
    def backbone(self):
        """The tiny model."""
        import torch

        import dinoviz

        return dinoviz.load(self.good / "model", device="cpu", dtype=torch.float32)

    @cached_property
    def features(self):
        """Of the good picture."""
        return self.backbone.encode(self.good / "picture.png", 56, layers="all")


Door = Callable[[Path, Room], int | None]


def open_image(path: Path, room: Room) -> None:
    from dinoviz import images

    assert images.open_image(path).mode == "RGB"


def image_bytes(path: Path, room: Room) -> None:
    """As an upload's or a zip's bytes; what is no regular file, or sparse, is for paths alone."""
    from dinoviz import images

    status = path.lstat()
    plain = stat.S_ISREG(status.st_mode) and status.st_size < 10**8
    images.open_image(path.read_bytes() if plain else path)


def mask(path: Path, room: Room) -> None:
    from dinoviz import mask_files, video

    mask_files.read_classes(path)
    video.check_mask(mask_files.read_mask(path), (96, 72))


def clip(path: Path, room: Room) -> None:
    from dinoviz.video import io as clips

    for number, _ in enumerate(clips.open_clip(path).frames(on_skip=lambda error: None)):
        if number == MOST:
            break


def model(path: Path, room: Room) -> None:
    import torch

    import dinoviz

    found = dinoviz.load(path, device="cpu", dtype=torch.float32)
    features = found.encode(room.good / "picture.png", 56, layers="all")
    assert np.isfinite(features.patches).all(), "features that are not finite"


def probe(path: Path, room: Room) -> None:
    from dinoviz import depth

    opened = depth.open_probe(path)
    opened.check(room.backbone.weights_id, room.backbone.name)
    assert np.isfinite(depth.predict(room.features, opened)).all(), "depth that is not finite"


def marks(path: Path, room: Room) -> None:
    from dinoviz.segment import prompts as module

    text = path.read_text()
    for size in ((96, 72), (7071, 7071)):
        module.parse(text, size).paint(np.zeros(size[::-1], bool))


def marks_of_pages(path: Path, room: Room) -> None:
    """As a canvas sends them, by the picture's key."""
    from dinoviz.segment import prompts as module

    text = path.read_text()
    for actions in module.by_picture(f'{{"picture": {text or "[]"}}}').values():
        module.parse(actions, (96, 72)).paint(np.zeros((72, 96), bool))
    module.listed(text)


def pictures(path: Path, room: Room) -> None:
    """What training finds and decodes."""
    from training.data.dataset import Decoded, find

    for classes in (True, False):
        Decoded(find(path, classes=classes), 32, max_broken=0.5)


def streamed(path: Path, room: Room) -> None:
    """The same where the pictures do not fit into memory."""
    from training.data.dataset import Decoded, batches, find

    found = find(path)
    decoded = Decoded(found, 32, memory=0, max_broken=0.5)
    for _ in batches(decoded, [list(range(min(len(found), MOST)))]):
        pass


def rgbd(path: Path, room: Room) -> None:
    from training.depth import rgbd as module

    pairs = module.find_pairs(path)
    module.split(pairs, 0.125)
    module.meta(path)
    module.intrinsics(path)
    for pair in pairs[:MOST]:
        pair.open(border=2)


def unpack(path: Path, room: Room) -> None:
    from training.depth import unpack as module

    for taught in (True, False):
        folder = room.work / f"taught-{taught}"
        before = set(room.work.iterdir())
        try:
            module.unpack([path], folder, taught=taught)
        except Exception:
            if taught and module.has_depth(path):  # which says that it needs no teacher
                continue
            raise
        assert set(room.work.iterdir()) - before <= {folder}, "files outside of the folder"
    rgbd(folder, room)


def run(path: Path, room: Room) -> None:
    """All that is read of a run without being told which it is."""
    from training import runs

    for each in runs.list_runs(path):
        json.dumps(each.status())
        each.metrics()
        each.at_work()
        each.stop_requested()
        each.checkpoint()
        _ = each.kind, each.config, each.name
        _name_networks(each)
        runs.Run.open(each.folder)


def _name_networks(run) -> None:
    from dinoviz.models import run_name, weights_stamp

    for network in run.networks(snapshots=True):
        run_name(network)
        weights_stamp(os.fspath(network))


def run_page(path: Path, room: Room) -> None:
    """What the page's list, its notice and its curves say of it."""
    from dinoviz.ui.train import metrics_log, run_list
    from training.runs.run import list_runs

    for each in list_runs(path):
        run_list.label(each)
        run_list.status_html(each, [])
        run_list.last_lines(each, 8)
        metrics_log.records(each)


def dinoviz_command(*words: str) -> Door:
    """`python -m dinoviz ...`: {it} is the file, {good} the folder of what is right, {out} a new folder."""

    def call(path: Path, room: Room) -> int:
        from dinoviz.__main__ import main

        return main(_filled(words, path, room))

    return call


def training_command(*words: str) -> Door:
    """`python -m training ...`, with a folder of runs of its own."""

    def call(path: Path, room: Room) -> int:
        from training.__main__ import main

        os.environ["DINOVIZ_RUNS"] = os.fspath(path if "{runs}" in words else room.work / "runs")
        return main(_filled([word for word in words if word != "{runs}"], path, room))

    return call


def _filled(words, path: Path, room: Room) -> list[str]:
    only = next(path.iterdir(), path).name if path.is_dir() else path.name
    places = {"{it}": path, "{good}": room.good, "{out}": room.work / "out", "{name}": only}
    found = []
    for word in words:
        for place, value in places.items():
            word = word.replace(place, os.fspath(value))
        found.append(word)
    return found


VIEW = ("--out", "{out}", "--model", "{good}/model", "--resolution", "56", "--device", "cpu")
SHORT = ("--batch", "2", "--seed", "0", "--device", "cpu")
TINY_RUN = (
    *("--preset", "micro", "--epochs", "0.01", "--dim", "24", "--depth", "1", "--batch", "2", "--global-size", "16"),
    *("--local-size", "8", "--prototypes", "16", "--head-hidden", "16", "--head-bottleneck", "8", "--knn-every", "0"),
    *("--snapshot-every", "0", "--name", "hostile"),
)
COMMANDS: dict[str, Door] = {
    "dinoviz attention": dinoviz_command("attention", "{it}", *VIEW),
    "dinoviz pca": dinoviz_command("pca", "{it}", *VIEW),
    "dinoviz depth": dinoviz_command("depth", "{it}", *VIEW, "--probe", "{good}/probe.safetensors", "--ply"),
    "dinoviz compare": dinoviz_command(
        "compare",
        "{it}",
        "--out",
        "{out}",
        "--models",
        "{good}/model",
        "{good}/model",
        "--resolution",
        "56",
        "--device",
        "cpu",
    ),
    "dinoviz segment": dinoviz_command(
        "segment",
        "{it}",
        *VIEW,
        "--reference",
        "{good}/picture.png",
        "--mask",
        "{good}/mask.png",
        "--overlays",
        "--cutouts",
    ),
    "dinoviz segment coco": dinoviz_command(
        "segment", "{it}", *VIEW, "--reference", "{good}/picture.png", "--mask", "{good}/mask.png", "--format", "coco"
    ),
    "dinoviz segment --reference": dinoviz_command(
        "segment", "{good}/picture.png", *VIEW, "--reference", "{it}", "--mask", "{good}/mask.png"
    ),
    "dinoviz segment --mask": dinoviz_command(
        "segment", "{good}/picture.png", *VIEW, "--reference", "{good}/picture.png", "--mask", "{it}"
    ),
    "dinoviz video": dinoviz_command("video", "{it}", *VIEW, "--mask", "{good}/mask.png"),
    "dinoviz video --mask": dinoviz_command("video", "{good}/clip.mp4", *VIEW, "--mask", "{it}"),
    "dinoviz attention --model": dinoviz_command(
        "attention", "{good}/picture.png", "--out", "{out}", "--model", "{it}", "--resolution", "56", "--device", "cpu"
    ),
    "dinoviz compare --models": dinoviz_command(
        "compare",
        "{good}/picture.png",
        "--out",
        "{out}",
        "--models",
        "{good}/model",
        "{it}",
        "--resolution",
        "56",
        "--device",
        "cpu",
    ),
    "dinoviz depth --probe": dinoviz_command("depth", "{good}/picture.png", *VIEW, "--probe", "{it}"),
    "training evaluate": training_command(
        "evaluate", "{it}", "--model", "{good}/model", "--size", "28", "--no-linear", "--device", "cpu"
    ),
    "training pretrain": training_command("pretrain", "{it}", *TINY_RUN),
    "training finetune": training_command(
        "finetune", "{it}", "--model", "{good}/model", "--size", "28", "--epochs", "1", "--name", "hostile", *SHORT
    ),
    "training probe": training_command(
        "probe",
        "{it}",
        "--model",
        "{good}/model",
        "--head",
        "linear",
        "--epochs",
        "1",
        "--resolution",
        "56",
        "--name",
        "hostile",
        *SHORT,
    ),
    "training finetune --model": training_command(
        "finetune", "--demo", "--model", "{it}", "--size", "28", "--epochs", "1", "--name", "hostile", *SHORT
    ),
    "training pretrain --config": training_command(
        "pretrain", "--demo", "--config", "{it}", "--save-config", "{out}.json"
    ),
    "training list": training_command("list", "{runs}"),
    "training stop": training_command("stop", "{name}", "{runs}"),
    "training export": training_command("export", "{name}", "--out", "{out}", "{runs}"),
}

LIBRARY: dict[str, Door] = {
    door.__name__: door
    for door in (
        open_image,
        image_bytes,
        mask,
        clip,
        model,
        probe,
        marks,
        marks_of_pages,
        pictures,
        streamed,
        rgbd,
        unpack,
        run,
        run_page,
    )
}
ALL: dict[str, Door] = {**LIBRARY, **COMMANDS}


@dataclass(frozen=True)
class Doors:
    """Those of a group of cases: of the library, commands, and endpoints of the app (see `tests.hostile.app`).

    either: where what is right by itself may be refused all the same, as a photograph that is given as a mask.
    """

    library: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    either: tuple[str, ...] = ()


VIEWS = ("attention", "pca", "depth", "compare", "segment", "segment --reference")
DOORS: dict[str, Doors] = {
    "image": Doors(
        ("open_image", "image_bytes", "mask"),
        tuple(f"dinoviz {view}" for view in VIEWS),
        ("encode", "attention", "patch_pca", "depth", "segment", "compare"),
        either=("mask", "dinoviz segment --reference"),
    ),
    "name": Doors(
        ("open_image",), ("dinoviz attention", "dinoviz segment", "dinoviz segment coco"), ("encode", "segment")
    ),
    "mask": Doors(
        ("mask", "open_image"),
        ("dinoviz segment --mask", "dinoviz video --mask"),
        ("encode",),
        either=("open_image", "dinoviz segment --mask", "http encode"),
    ),
    "clip": Doors(("clip",), ("dinoviz video",), ("segment_video",)),
    "archive": Doors(
        ("pictures", "streamed", "unpack"),
        ("training evaluate", "training pretrain", "training finetune", "training probe"),
        ("preview_data",),
        either=("unpack", "training evaluate", "training finetune", "training probe", "http preview_data"),
    ),
    "pictures": Doors(
        ("pictures", "streamed"),
        ("training evaluate", "training pretrain", "training finetune", "dinoviz attention"),
        either=("training evaluate", "training finetune"),
    ),
    "list": Doors(
        ("pictures", "streamed"),
        ("training evaluate", "training pretrain"),
        ("preview_data",),
        either=("training evaluate", "http preview_data"),
    ),
    "model": Doors(("model",), ("dinoviz attention --model", "dinoviz compare --models", "training finetune --model")),
    "probe": Doors(("probe",), ("dinoviz depth --probe",)),
    "run": Doors(("run", "run_page"), ("training list", "training stop", "training export"), ("run",)),
    "rgbd": Doors(("rgbd",), ("training probe",)),
    "rgbd_zip": Doors(
        ("unpack", "pictures"), ("training probe",), ("preview_data",), either=("pictures", "http preview_data")
    ),
    "marks": Doors(("marks", "marks_of_pages"), (), ("segment",), either=("http segment",)),
    "settings": Doors((), ("training pretrain --config",)),
}
