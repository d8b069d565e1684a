"""What the commands share: their options, the loading of the weights, and the walk over files and folders."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import hub, models
from dinoviz.atomic_files import writing
from dinoviz.errors import DinovizError, check_share

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.features import Features

DEFAULT_RESOLUTION = 518


def looking(layer: bool = True, resolution: int | None = DEFAULT_RESOLUTION) -> argparse.ArgumentParser:
    """The options of every view: where the results go, and through which weights to look.

    layer: whether the layer can be chosen. resolution: where nobody chooses one; None for that of the training.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--model", help="a name of `models`, a Hub id or a folder; default as in the app")
    default = resolution or "as it was trained"
    parser.add_argument("--resolution", type=int, default=resolution, help=f"short side in model pixels ({default})")
    if layer:
        parser.add_argument("--layer", type=int, help="from 1; by default the last, for `video` two thirds up")
    parser.add_argument("--device", help="cpu, cuda or mps; by default the best there is")
    return parser


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The options of a view that draws a map over each of the pictures it is given."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of them")
    parser.add_argument("--opacity", type=float, default=None, help="of the map over the picture, 0 to 1")
    parser.add_argument("--raw", action="store_true", help="one flat square a patch instead of interpolation")


def check_pictures(options: argparse.Namespace) -> None:
    """Refuse what `add_pictures` let through, before weights are loaded for it."""
    from dinoviz.images import find_images

    if options.opacity is not None:
        check_share("opacity", options.opacity)
    find_images(options.images)


def load(
    options: argparse.Namespace, default_layer: Callable[[int], int] = lambda layers: layers - 1
) -> tuple[Backbone, int]:
    """The backbone and the layer from 0; what is wrong with the options is said before anything is downloaded.

    default_layer: from the number of layers, the layer from 0 to look at if nobody chose one; else the last.
    """
    backbone = load_backbone(options)
    layer = default_layer(backbone.layers) + 1 if options.layer is None else options.layer
    if not 1 <= layer <= backbone.layers:
        raise DinovizError(f"{backbone.name} has layers 1 to {backbone.layers}, not {layer}.")
    print(f"dinoviz: looking through {backbone.name}, layer {layer} of {backbone.layers}: {backbone.source}")
    return backbone, layer - 1


def load_backbone(options: argparse.Namespace) -> Backbone:
    """The backbone, and the folder for the results, for commands that choose their layers themselves."""
    prepare(options)
    return models.load(options.model or models.default_name(), device=options.device)


def prepare(options: argparse.Namespace) -> None:
    """Check the resolution and make the folder for the results, before anything is downloaded."""
    from dinoviz.grid import MAX_RESOLUTION, MIN_RESOLUTION

    if options.resolution is not None and not MIN_RESOLUTION <= options.resolution <= MAX_RESOLUTION:
        raise DinovizError(f"The resolution is {MIN_RESOLUTION} to {MAX_RESOLUTION}, not {options.resolution}.")
    hub.quiet_transformers()
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)


def each(
    options: argparse.Namespace,
    look: Callable[[Image.Image, Callable[[str], Path]], None],
    at_last: Callable[[], None] = lambda: None,
) -> int:
    """Look at every image with a progress bar; one that cannot be looked at is named, the others are done."""
    from tqdm import tqdm

    from dinoviz.images import open_image

    work = list(targets(options))
    refused = 0
    with writing(options.out):
        for path, target in tqdm(work, unit="image", disable=len(work) == 1):
            try:
                look(open_image(path, name=str(path)), target)
            except DinovizError as error:
                refused += 1
                tqdm.write(refusal(path, error), file=sys.stderr)
        at_last()
    print(f"dinoviz: {len(work) - refused} of {len(work)} done, in {options.out}")
    return 2 if refused else 0


def refusal(path: Path, error: DinovizError) -> str:
    """The line that names a file which cannot be used, and says why."""
    from dinoviz.images import ImageError

    about = "" if isinstance(error, ImageError) else f"{path}: "  # which says its name itself
    return f"dinoviz: {about}{error}"


def identity(path: Path) -> list:
    """What changes when a file does, without reading it."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def targets(options: argparse.Namespace) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """Each file with a function from an ending to where its result goes; folders keep their inner shape."""
    taken: set[Path] = set()
    for file, root in _files(options.images, options.out).items():
        folder = options.out / file.relative_to(root).parent
        stem, again = folder / file.stem, 1
        while stem in taken:  # cat.jpg beside cat.png, or in another folder
            stem = folder / (file.name if again == 1 else f"{file.name}-{again}")
            again += 1
        taken.add(stem)

        def target(ending: str, folder: Path = folder, stem: Path = stem) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            return stem.with_name(f"{stem.name}-{ending}")

        yield file, target


def _files(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Every file once, with the folder that was asked for. What an earlier run left in `out` is no picture."""
    from dinoviz.images import ImageError, find_images

    files: dict[Path, Path] = {}
    for given in images:
        if not given.is_dir():
            files.setdefault(given, given.parent)
            continue
        results = out.resolve()
        inside = given.resolve() in results.parents
        with suppress(ImageError):  # an empty folder beside others
            for file in find_images([given]):
                if not (inside and results in file.resolve().parents):
                    files.setdefault(file, given)
    if not files:
        raise ImageError(f"There are no images in {', '.join(map(str, images))}.")
    return files


def numbers(text: str, count: int | None, kind: type) -> list:
    """The numbers of "1,2,3"; count: how many there must be, None for any. Raises DinovizError for anything else."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count and len(numbers) != count):
        raise DinovizError(f"{text!r} is not {count or 'a list of'} numbers with commas between them.")
    return numbers


def joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--point -3,5` as `--point=-3,5`: argparse takes a value like that for an option."""
    done: list[str] = []
    for argument in arguments:
        if done and re.match(r"-[\d.][^,]*,", argument) and re.match(r"--[\w-]+$", done[-1]):
            done[-1] += f"={argument}"
        else:
            done.append(argument)
    return done


def about(features: Features, layer: int | Sequence[int]) -> dict:
    """What an array file should tell of its origin: the weights, the layer or layers from 1, the sizes."""
    grid = features.grid
    return {
        "weights": features.weights, "weights_id": features.weights_id,
        "layer": layer + 1 if isinstance(layer, int) else [each + 1 for each in layer],
        "image_size": grid.image_size, "model_size": grid.model_size, "patch_size": grid.patch_size,
    }  # fmt: skip
