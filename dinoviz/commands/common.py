"""Shared by the commands: options, loading of backbones, and iteration over files and folders."""

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


def view_options(layer: bool = True, resolution: int | None = DEFAULT_RESOLUTION) -> argparse.ArgumentParser:
    """A parent parser with the options of every view: output folder, model, resolution, layer and device.

    layer: whether to include --layer. resolution: the default; None for that of the training.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--model", help="a name listed by `models`, a Hub id or a folder (default: as in the app)")
    default = resolution or "as in training"
    parser.add_argument(
        "--resolution", type=int, default=resolution, help=f"short side in model pixels (default: {default})"
    )
    if layer:
        parser.add_argument(
            "--layer", type=int, help="from 1 (default: the last; for `video` at two thirds of the depth)"
        )
    parser.add_argument("--device", help="cpu, cuda or mps (default: the fastest available)")
    return parser


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the options of a view that draws a map over each picture."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files or folders")
    parser.add_argument("--opacity", type=float, default=None, help="opacity of the map over the picture, 0 to 1")
    parser.add_argument("--raw", action="store_true", help="draw one flat square per patch instead of interpolating")


def check_pictures(options: argparse.Namespace) -> None:
    """Check the values of the options of `add_pictures`, before weights are loaded."""
    from dinoviz.images import find_images

    if options.opacity is not None:
        check_share("opacity", options.opacity)
    find_images(options.images)


def load(
    options: argparse.Namespace, default_layer: Callable[[int], int] = lambda layers: layers - 1
) -> tuple[Backbone, int]:
    """Load the backbone, and return it with the layer from 0; options are checked before anything is downloaded.

    default_layer: from the number of layers to the layer from 0 that is used without --layer.
    """
    backbone = load_backbone(options)
    layer = default_layer(backbone.layers) + 1 if options.layer is None else options.layer
    if not 1 <= layer <= backbone.layers:
        raise DinovizError(f"{backbone.name} has layers 1 to {backbone.layers}, not {layer}.")
    print(f"dinoviz: using {backbone.name}, layer {layer} of {backbone.layers}: {backbone.source}")
    return backbone, layer - 1


def load_backbone(options: argparse.Namespace) -> Backbone:
    """Make the output folder and load the backbone, for commands without --layer."""
    prepare(options)
    return models.load(options.model or models.default_name(), device=options.device)


def prepare(options: argparse.Namespace) -> None:
    """Check the resolution and make the output folder, before anything is downloaded."""
    if options.resolution is not None:
        check_resolution(options.resolution)
    hub.quiet_transformers()
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)


def check_resolution(resolution: int) -> None:
    """Raise DinovizError for a resolution out of range."""
    from dinoviz.grid import MAX_RESOLUTION, MIN_RESOLUTION

    if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise DinovizError(f"The resolution must be {MIN_RESOLUTION} to {MAX_RESOLUTION}, not {resolution}.")


def each(
    options: argparse.Namespace,
    process: Callable[[Image.Image, Callable[[str], Path]], None],
    finish: Callable[[], None] = lambda: None,
) -> int:
    """Process every image, with a progress bar. Errors of single images are printed, and the others are processed.

    Args:
        options: with `images` and `out`.
        process: gets each image, and a function from a suffix to the path of a result.
        finish: called after the last image.

    Returns:
        The exit status.
    """
    from tqdm import tqdm

    from dinoviz.images import open_image

    work = list(targets(options))
    refused = 0
    with writing(options.out):
        for path, target in tqdm(work, unit="image", disable=len(work) == 1):
            try:
                process(open_image(path, name=str(path)), target)
            except DinovizError as error:
                refused += 1
                tqdm.write(refusal(path, error), file=sys.stderr)
        finish()
    print(f"dinoviz: {len(work) - refused} of {len(work)} done, in {options.out}")
    return 2 if refused else 0


def refusal(path: Path, error: DinovizError) -> str:
    """A line with the path of a file that cannot be used, and the reason."""
    from dinoviz.images import ImageError

    prefix = "" if isinstance(error, ImageError) else f"{path}: "  # an ImageError starts with the path already
    return f"dinoviz: {prefix}{error}"


def identity(path: Path) -> list:
    """Values that change when a file changes, without reading it: path, size and time."""
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def targets(options: argparse.Namespace) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """Yield each file with a function from a suffix to the path of a result; subfolders are kept."""
    taken: set[Path] = set()
    for file, root in _files(options.images, options.out).items():
        folder = options.out / file.relative_to(root).parent
        stem, again = folder / file.stem, 1
        while stem in taken:  # cat.jpg beside cat.png, or in another folder
            stem = folder / (file.name if again == 1 else f"{file.name}-{again}")
            again += 1
        taken.add(stem)

        def target(suffix: str, folder: Path = folder, stem: Path = stem) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            return stem.with_name(f"{stem.name}-{suffix}")

        yield file, target


def _files(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Every file once, with the folder given on the command line; without the results of earlier runs in `out`."""
    from dinoviz.images import ImageError, find_images

    files: dict[Path, Path] = {}
    for given in images:
        if not given.is_dir():
            files.setdefault(given, given.parent)
            continue
        results = out.resolve()
        inside = given.resolve() in results.parents
        with suppress(ImageError):  # one folder may be empty
            for file in find_images([given]):
                if not (inside and results in file.resolve().parents):
                    files.setdefault(file, given)
    if not files:
        raise ImageError(f"There are no images in {', '.join(map(str, images))}.")
    return files


def numbers(text: str, count: int | None, kind: type) -> list:
    """Parse numbers such as "1,2,3"; count: how many are required, None for any. Raises DinovizError."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count and len(numbers) != count):
        raise DinovizError(f"Expected {count or 'a list of'} numbers with commas between them, not {text!r}.")
    return numbers


def join_negative(arguments: Sequence[str]) -> list[str]:
    """Change `--point -3,5` to `--point=-3,5`, since argparse mistakes such values for options."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.match(r"-[\d.][^,]*,", argument) and re.match(r"--[\w-]+$", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def about(features: Features, layer: int | Sequence[int]) -> dict:
    """The origin of results, for array files: weights, layer or layers from 1, and sizes."""
    grid = features.grid
    return {
        "weights": features.weights, "weights_id": features.weights_id,
        "layer": layer + 1 if isinstance(layer, int) else [each + 1 for each in layer],
        "image_size": grid.image_size, "model_size": grid.model_size, "patch_size": grid.patch_size,
    }  # fmt: skip
