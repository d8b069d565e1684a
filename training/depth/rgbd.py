"""RGB-D folders: rgb/ID.jpg, and for each picture depth/ID.png or depth/ID.npy; their split, and depth metrics.

A PNG has one channel of 16 bits, in millimetres; an array is in metres if it is of floats, else in millimetres. 0 is
unknown, and so are NaN and infinity. meta.json may hold "intrinsics" (fx, fy, cx, cy in pixels) and "licence".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.images import SUFFIXES, open_image
from dinoviz.json_files import read_json

# Rows and columns of a 480 x 640 picture of NYU Depth v2 that are evaluated (Eigen et al. 2014).
EIGEN_ROWS, EIGEN_COLUMNS = (45 / 480, 471 / 480), (41 / 640, 601 / 640)
# Wrong units are detected by implausible depth: no value above 20 in integers, which would be 20 mm, or a median above
# 300 in floats, which would be 300 m.
MOST_METRES, LEAST_MILLIMETRES = 20, 300
EIGHTH = 8  # of the groups, one is held out


class DepthDataError(DinovizError):
    """A folder that is not an RGB-D folder, or a file in it that cannot be used."""


@dataclass(frozen=True)
class Pair:
    """The files of a picture and of its depth."""

    image: Path
    depth: Path

    def open(self, border: int = 0) -> tuple[Image.Image, np.ndarray]:
        """The picture, mode RGB, and its depth (H, W) float32 in metres, 0 where unknown.

        border: pixels to cut from each side of both.
        Raises ImageError for the picture, DepthDataError for the depth.
        """
        picture = open_image(self.image)
        depth = _read(self.depth, picture.size)
        if not border:
            return picture, depth
        if min(picture.size) <= 2 * border:
            raise DepthDataError(f"{self.image.name}: nothing is left inside a border of {border} pixels.")
        inside = slice(border, -border)
        return picture.crop((border, border, picture.width - border, picture.height - border)), depth[inside, inside]


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Depth (H, W) float32 in metres. size: the expected (W, H). Raises DepthDataError."""
    if not path.is_file():  # opening a FIFO would block
        raise DepthDataError(f"{path.name}: no such file.")
    array = _read_npy(path, size) if path.suffix == ".npy" else _read_png(path, size)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # doubles beyond float32
            metres = array.astype(np.float32)
        metres[~np.isfinite(metres)] = 0
    else:
        metres = array.astype(np.float32) / 1000
    if metres.min(initial=0) < 0:
        raise DepthDataError(f"{path.name} has negative depth, down to {metres.min():g} m; unknown depth must be 0.")
    some = array[metres > 0]
    if array.dtype.kind != "f" and some.size and some.max() <= MOST_METRES:
        raise DepthDataError(
            f"{path.name}: the largest depth is {some.max()} mm; these integers seem to be metres, and must be "
            "multiplied by 1000."
        )
    if array.dtype.kind == "f" and some.size and np.median(some) > LEAST_MILLIMETRES:
        raise DepthDataError(
            f"{path.name}: the median depth is {np.median(some):.0f} m; these floats seem to be millimetres, and must "
            "be divided by 1000 or saved as integers."
        )
    return metres


def _read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as file:
            _check_size(path, file.size, size)
            array = np.asarray(file)
    except DepthDataError:
        raise
    except Exception:  # decoders raise nearly everything on damaged files, and DecompressionBombError on large ones
        raise DepthDataError(f"{path.name} is not a readable PNG.") from None
    if array.ndim != 2 or array.dtype == np.uint8 or array.dtype.kind not in "iu":
        raise DepthDataError(f"{path.name}: a depth PNG must have one channel of 16 bits, in millimetres.")
    return array


def _read_npy(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        # Mapped, a header that states more than the file has is refused before memory is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # the header is evaluated as Python: RecursionError, OverflowError, MemoryError and more
        raise DepthDataError(f"{path.name} is not a readable array.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iuf":
        raise DepthDataError(f"{path.name}: depth must be one array (H, W) of numbers.")
    _check_size(path, array.shape[::-1], size)
    return np.array(array)


def _check_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if tuple(found) != wanted:
        raise DepthDataError(
            f"{path.name} has {found[0]} x {found[1]} pixels, its picture {wanted[0]} x {wanted[1]}; "
            "they must be equal."
        )


def find_pairs(folder: str | os.PathLike, limit: int = 0) -> list[Pair]:
    """The pairs of a folder, sorted by name and number. limit: the number of pairs, 0 for all.

    Raises DepthDataError if there are none, or if pictures have no depth.
    """
    folder = Path(folder)
    if not (folder / "rgb").is_dir() or not (folder / "depth").is_dir():
        raise DepthDataError(
            f"{folder} is not an RGB-D folder: it needs the folders rgb and depth, or a teacher that predicts depth."
        )
    images = [path for path in (folder / "rgb").iterdir() if path.suffix.lower() in SUFFIXES]
    there = {path.name for path in (folder / "depth").iterdir()}
    pairs = [
        Pair(image, folder / "depth" / f"{image.stem}{'.npy' if f'{image.stem}.npy' in there else '.png'}")
        for image in sorted(images, key=lambda path: (*_numbered(path), path.name))
    ]
    lacking = [pair.image.name for pair in pairs if pair.depth.name not in there]
    if lacking:
        more = ", ..." if len(lacking) > 3 else ""
        raise DepthDataError(
            f"{len(lacking)} of {len(pairs)} pictures in {folder} have no depth: {', '.join(lacking[:3])}{more}."
        )
    if not pairs:
        raise DepthDataError(f"There are no images in {folder / 'rgb'}.")
    return pairs[:limit] if limit else pairs


def _numbered(path: Path) -> tuple[str, int]:
    """The name without the number at its end, and that number, -1 if there is none."""
    name, number = re.fullmatch(r"(.*?)(\d*)", path.stem, re.DOTALL).groups()
    return name, int(number) if number else -1


def meta(folder: str | os.PathLike) -> dict:
    """The content of the folder's meta.json; {} if there is none. Raises DepthDataError if it cannot be read."""
    file = Path(folder) / "meta.json"
    return read_json(file, DepthDataError) if os.path.lexists(file) else {}


def intrinsics(folder: str | os.PathLike) -> dict[str, float] | None:
    """The camera of a folder's pictures, fx, fy, cx and cy in pixels of the whole picture, or None if it is unknown.

    Raises DepthDataError for invalid values, and for a meta.json that cannot be read.
    """
    values = meta(folder).get("intrinsics")
    if values is None:
        return None
    try:
        camera = {name: float(values[name]) for name in ("fx", "fy", "cx", "cy")}
    except (TypeError, KeyError, ValueError):
        raise DepthDataError("The intrinsics in meta.json need the numbers fx, fy, cx and cy.") from None
    if not all(map(math.isfinite, camera.values())) or min(camera["fx"], camera["fy"]) <= 0:
        raise DepthDataError("The intrinsics in meta.json are invalid: fx and fy must be positive numbers of pixels.")
    return camera


@dataclass(frozen=True)
class Split:
    """Training, validation and held-out pairs, and a description of the rule that split them."""

    train: list[Pair]
    validation: list[Pair]
    held_out: list[Pair]
    rule: str


def split(pairs: Sequence[Pair], validation: float, held_out: int = 0) -> Split:
    """Split pictures by groups that were taken one after the other, so that no room is on two sides.

    Consecutive numbers at the end of names form one group; other pictures are groups of their own. If there are fewer
    than 8 groups, equal stretches of the sorted pictures are used instead.

    Args:
        pairs: sorted, see `find_pairs`.
        validation: share of the groups for validation; 0 for none.
        held_out: number of pictures to hold out.

    Raises:
        DepthDataError: if there are too few pictures.
    """
    every = max(2, round(1 / validation)) if validation else 2
    groups = groups_of(pairs)
    if len(groups) >= max(every, EIGHTH):
        rule = ["sorted by name and number", f"consecutive numbers are one group, {len(groups)} in all"]
    else:
        count = min(len(pairs), max(every, EIGHTH))
        rule = ["sorted by name and number", f"cut into {count} stretches, because there are {len(groups)} groups"]
        groups = [[pairs[i] for i in part] for part in np.array_split(np.arange(len(pairs)), count)]
        every = max(2, min(every, count))
    out, left = [], []  # left: the unused rest of the last group
    for i in range(EIGHTH - 1, len(groups), EIGHTH):
        room = held_out - len(out)
        if room > 0:
            out += groups[i][:room]
            left += groups[i][room:]
    if len(out) < held_out:
        raise DepthDataError(
            f"held_out is {held_out}, but every {EIGHTH}th of the {len(groups)} groups has only {len(out)} pictures in "
            "all."
        )
    taken = {pair.image for pair in (*out, *left)}
    if held_out:
        rule.append(
            f"every {EIGHTH}th group (the {EIGHTH}th, {2 * EIGHTH}th, ...) is held out, {held_out} pictures in all; "
            f"the {len(left)} others of the last one are not used"
        )
    first, chosen = every // 2, []
    if validation:
        rule.append(
            f"every {every}th of all groups from number {first} on, without held-out pictures, is for validation"
        )
        chosen = [pair for group in groups[first - 1 :: every] for pair in group if pair.image not in taken]
    aside = taken | {pair.image for pair in chosen}
    train = [pair for pair in pairs if pair.image not in aside]
    if not train or (validation and not chosen):
        raise DepthDataError(
            f"A probe needs images for training and at least one for validation; {len(pairs)} are too few."
        )
    return Split(train, chosen, out, "; ".join(rule))


def groups_of(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Groups of sorted pairs with consecutive numbers at the end of their names; other pairs alone."""
    groups: list[list[Pair]] = []
    last = None
    for pair in pairs:
        name, number = _numbered(pair.image)
        if last is not None and number >= 0 and last in ((name, number - 1), (name, number)):
            groups[-1].append(pair)
        else:
            groups.append([pair])
        last = name, number
    return groups


def counts(depth: np.ndarray, crop: str, far: float, border: int = 0) -> np.ndarray:
    """Mask (H, W) of valid pixels: known, at most `far` metres, and within the crop ("eigen" or "none").

    border: pixels that were cut from each side; the crop is relative to the whole picture.
    """
    valid = (depth > 0) & (depth <= far)
    if crop == "eigen":
        inside = np.zeros_like(valid)
        rows, columns = (
            slice(*(max(0, round(edge * (side + 2 * border)) - border) for edge in edges))
            for edges, side in ((EIGEN_ROWS, depth.shape[0]), (EIGEN_COLUMNS, depth.shape[1]))
        )
        inside[rows, columns] = True
        valid &= inside
    return valid


def depth_errors(
    predicted: np.ndarray, depth: np.ndarray, valid: np.ndarray, *, median_scaled: bool = False
) -> dict[str, float]:
    """Depth metrics of one picture over its valid pixels (Eigen et al. 2014; Bhat et al. 2021).

    rmse in metres; rmse_log, of natural logarithms; abs_rel and sq_rel, relative to the true depth; log10, the mean
    difference of decimal logarithms; silog, 100 times the standard deviation of the difference of logarithms; delta1 to
    delta3, the share of pixels within a factor of 1.25, 1.25 ** 2, 1.25 ** 3.
    median_scaled: scale the prediction to the true median, which measures shape without scale.
    """
    p, t = predicted[valid].astype(np.float64), depth[valid].astype(np.float64)
    if median_scaled:
        p = p * (np.median(t) / np.median(p))
    ratio, g = np.maximum(p / t, t / p), np.log(p) - np.log(t)
    return {
        "rmse": float(np.sqrt(((p - t) ** 2).mean())),
        "rmse_log": float(np.sqrt((g**2).mean())),
        "abs_rel": float((np.abs(p - t) / t).mean()),
        "sq_rel": float(((p - t) ** 2 / t).mean()),
        "log10": float(np.abs(g).mean() / np.log(10)),
        "silog": float(100 * np.sqrt(max(0.0, (g**2).mean() - g.mean() ** 2))),
        **{f"delta{i}": float((ratio < 1.25**i).mean()) for i in (1, 2, 3)},
    }
