"""How steady the patch PCA is: its foreground and its colours, against the usual ways.

    python -m tests.benchmarks.pca_stability

Every picture is seen at 392, 518 and 672 px, as it is and mirrored; the maps are mirrored back and compared at the
patches of the 518 px grid, over all 15 pairs of the six. Uses $DINOVIZ_DATA or ../shared/data beside the checkout where
there is one, and always the pictures in scikit-image's and scikit-learn's wheels.

Foreground: IoU with DAVIS 2016's object masks (a patch is object if half of it is); IoU of the foreground with itself
over the pairs, its mean and the mean of each picture's worst pair; flips: pictures whose worst pair is below 0.2.
Colours: mean distance in RGB / sqrt(3) on patches that are foreground in both; contrast: the same distance between
random foreground patches of one map, so that grey maps do not win; what counts is distance / contrast, less is better.
In CIE Lab: the mean Delta E of the pairs. All methods are compared on the same patches, dinoviz's foreground.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import data
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image
from sklearn.decomposition import PCA

import dinoviz
from dinoviz.attention import cls_attention
from dinoviz.features import Features
from dinoviz.pca import fit, foreground_score

RESOLUTIONS = (392, 518, 672)
VIEWS = [(resolution, mirrored) for resolution in RESOLUTIONS for mirrored in (False, True)]
BASE = VIEWS.index((518, False))
WITH_OBJECT = ("astronaut", "chelsea", "coffee", "rocket", "camera")
WITHOUT = ("gravel", "grass", "brick", "hubble_deep_field", "immunohistochemistry")
SUBJECTS = ("dog", "dog6", "cat", "rc_car", "teapot")
SEQUENCES = ("cows", "car-roundabout", "libby")
FRAMES = (0, 29)  # of each DAVIS sequence

Map = np.ndarray


def data_folder() -> Path | None:
    folder = Path(os.environ.get("DINOVIZ_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    return folder if folder.is_dir() else None


def pictures(folder: Path | None) -> dict[str, Image.Image]:
    """Pictures with something in them: 8, or 16 with the data folder."""
    found = {name: getattr(data, name)() for name in WITH_OBJECT}
    found["motorcycle"] = data.stereo_motorcycle()[0]
    found |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    images = {name: Image.fromarray(np.asarray(array)).convert("RGB") for name, array in found.items()}
    if folder:
        for name in SUBJECTS:
            images[name] = Image.open(min((folder / "subjects" / name).glob("*.jpg"))).convert("RGB")
        for name in SEQUENCES:
            images[name] = Image.open(folder / "davis" / "images" / name / "00014.jpg").convert("RGB")
    return images


def davis(folder: Path) -> list[tuple[Image.Image, np.ndarray]]:
    pairs = []
    for sequence in sorted((folder / "davis" / "images").iterdir()):
        frames = sorted(sequence.iterdir())
        for i in FRAMES:
            mask = folder / "davis" / "masks" / sequence.name / f"{frames[i].stem}.png"
            pairs.append((Image.open(frames[i]).convert("RGB"), np.asarray(Image.open(mask).convert("L")) > 0))
    return pairs


def views(backbone, image: Image.Image) -> list[Features]:
    mirrored = ImageOps.mirror(image)
    return [backbone.encode(mirrored if m else image, resolution, (8, -1)) for resolution, m in VIEWS]


def at_base(maps: list[Map], shape: tuple[int, int]) -> list[Map]:
    """Maps of all views, mirrored back and drawn on one grid."""
    flat = [m[:, ::-1] if mirrored else m for m, (_, mirrored) in zip(maps, VIEWS, strict=True)]
    return [cv2.resize(np.ascontiguousarray(m, dtype=np.float32), shape[::-1]) for m in flat]


# ----- foreground candidates: (features, layer) -> mask -----


def first_component(f: Features, layer: int) -> Map:
    patches = f.layer(layer)
    scores = PCA(1, svd_solver="covariance_eigh").fit_transform(
        patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    )
    return scores.reshape(patches.shape[:2])


def on_border(values: Map) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])


def away_from_border(values: Map) -> Map:
    return values if on_border(values).mean() < values.mean() else -values


def above_zero(f: Features, layer: int) -> Map:
    return first_component(f, layer) > 0


def otsu_border(f: Features, layer: int) -> Map:
    values = away_from_border(first_component(f, layer))
    return values > threshold_otsu(values)


def otsu_attention(f: Features, layer: int) -> Map:
    values = first_component(f, layer)
    attention = cls_attention(f, layer).mean(axis=0)
    values = values if np.corrcoef(values.ravel(), attention.ravel())[0, 1] > 0 else -values
    return values > threshold_otsu(values)


def attention_otsu(f: Features, layer: int) -> Map:
    attention = cls_attention(f, layer).mean(axis=0)
    return attention > threshold_otsu(attention)


def two_clusters(f: Features, layer: int) -> Map:
    patches = f.layer(layer)
    unit = (patches / np.linalg.norm(patches, axis=-1, keepdims=True)).reshape(-1, patches.shape[-1])
    labels = KMeans(2, n_init=3, random_state=0).fit_predict(unit).reshape(patches.shape[:2])
    return away_from_border(labels.astype(float) - 0.5) > 0


def ours_foreground(f: Features, layer: int) -> Map:
    return foreground_score(f.layer(layer)) >= 0.5


FOREGROUNDS: dict[str, Callable[[Features, int], Map]] = {
    "first component > 0": above_zero,
    "first component, Otsu, sign by border": otsu_border,
    "first component, Otsu, sign by CLS attention": otsu_attention,
    "CLS attention, Otsu": attention_otsu,
    "two clusters (k-means), by border": two_clusters,
    "dinoviz: unlike the border": ours_foreground,
}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def foreground_table(encoded: dict[str, list[Features]], masks: list[tuple[Features, Map]], layer: int) -> None:
    print(f"  {'':46s} DAVIS mean  median   itself  worst pair  flips")
    for name, find in FOREGROUNDS.items():
        known = [iou(find(f, layer), mask) for f, mask in masks]
        itself = []
        for seen in encoded.values():
            found = [m > 0.5 for m in at_base([find(f, layer) for f in seen], seen[BASE].grid.shape)]
            itself.append([iou(a, b) for a, b in combinations(found, 2)])
        mean, median = (np.mean(known), np.median(known)) if known else (np.nan, np.nan)
        worst = np.min(itself, axis=1)
        print(
            f"  {name:46s} {mean:10.3f} {median:7.3f} {np.mean(itself):8.3f} {worst.mean():11.3f}"
            f"  {(worst < 0.2).sum()}/{len(worst)}"
        )


# ----- colours: (list of Features, layer) -> maps -----


def min_max(all_features: list[Features], layer: int, keep: Callable[[Features, int], Map]) -> list[Map]:
    patches = [f.layer(layer).astype(np.float64) for f in all_features]
    kept = [keep(f, layer) for f in all_features]
    pca = PCA(3, svd_solver="covariance_eigh").fit(np.concatenate([p[k] for p, k in zip(patches, kept, strict=True)]))
    coordinates = [pca.transform(p.reshape(-1, p.shape[-1])).reshape(*p.shape[:2], 3) for p in patches]
    fitted = np.concatenate([c[k] for c, k in zip(coordinates, kept, strict=True)])
    low, high = fitted.min(axis=0), fitted.max(axis=0)
    return [np.clip((c - low) / (high - low), 0, 1) for c in coordinates]


def everything(f: Features, layer: int) -> Map:
    return np.ones(f.grid.shape, bool)


def ours(all_features: list[Features], layer: int, turned: bool = True, components=(0, 1, 2)) -> list[Map]:
    return fit(all_features, layer=layer).colours(components, turned=turned)


COLOURS: dict[str, Callable[[list[Features], int], list[Map]]] = {
    "sklearn PCA(3), min-max, all patches": lambda f, layer: min_max(f, layer, everything),
    "sklearn PCA(3), min-max, first component > 0": lambda f, layer: min_max(f, layer, above_zero),
    "sklearn PCA(3), min-max, dinoviz's foreground": lambda f, layer: min_max(f, layer, ours_foreground),
    "dinoviz, turned=False": lambda f, layer: ours(f, layer, turned=False),
    "dinoviz": ours,
    "dinoviz, components 4-6": lambda f, layer: ours(f, layer, components=(3, 4, 5)),
}


def contrast(colours: np.ndarray) -> float:
    """Mean distance of random pairs of (n, 3)."""
    a, b = np.random.default_rng(0).integers(0, len(colours), (2, 3000))
    return float(np.linalg.norm(colours[a] - colours[b], axis=-1).mean() / 3**0.5)


def distances(maps: list[Map], kept: list[Map]) -> tuple[float, float]:
    """(RGB distance, Delta E) over all pairs, on patches kept in both."""
    rgb, lab = [], []
    for i, j in combinations(range(len(maps)), 2):
        both = kept[i] & kept[j]
        if both.any():
            a, b = maps[i][both], maps[j][both]
            rgb.append(np.linalg.norm(a - b, axis=-1).mean() / 3**0.5)
            lab.append(np.linalg.norm(rgb2lab(a) - rgb2lab(b), axis=-1).mean())
    return float(np.mean(rgb)), float(np.mean(lab))


def print_colours(name: str, rows: list[tuple[float, float, float]]) -> None:
    distance, delta_e, spread = np.mean(rows, axis=0)
    ratios = [d / s for d, _, s in rows]
    print(
        f"  {name:46s} {distance:8.3f} {np.median([r[0] for r in rows]):7.3f} {spread:9.3f}"
        f" {distance / spread:6.2f} {np.median(ratios):7.2f} {delta_e:8.1f}"
    )


HEADER = f"  {'':46s} distance  median  contrast  ratio  median  Delta E"


def colour_table(encoded: dict[str, list[Features]], layer: int) -> None:
    kept = {name: [m > 0.5 for m in at_base([ours_foreground(f, layer) for f in seen], seen[BASE].grid.shape)]
            for name, seen in encoded.items()}  # fmt: skip
    print(HEADER)
    for method, colour in COLOURS.items():
        rows = []
        for name, seen in encoded.items():
            maps = at_base([colour([f], layer)[0] for f in seen], seen[BASE].grid.shape)
            rows.append((*distances(maps, kept[name]), contrast(maps[BASE][kept[name][BASE]])))
        print_colours(method, rows)


def joint_table(encoded: dict[str, list[Features]], layer: int) -> None:
    """Each picture alone, and in one basis with the next one in the list."""
    print(HEADER)
    names = list(encoded)
    for method, colour in COLOURS.items():
        rows = []
        for name, other in zip(names, names[1:] + names[:1], strict=True):
            first, second = encoded[name][BASE], encoded[other][BASE]
            kept = ours_foreground(first, layer)
            alone, joined = colour([first], layer)[0], colour([first, second], layer)[0]
            rows.append((*distances([alone, joined], [kept, kept]), contrast(alone[kept])))
        print_colours(method, rows)


def main() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    start = time.perf_counter()
    backbone, folder = dinoviz.load("embedded"), data_folder()
    encoded = {name: views(backbone, image) for name, image in pictures(folder).items()}
    frames = [(backbone.encode(image, 518, (8, -1)), mask) for image, mask in davis(folder)] if folder else []
    masks = [(f, f.grid.to_patches(mask.astype(float)) > 0.5) for f, mask in frames]
    print(
        f"Weights: {backbone.name}. {len(encoded)} pictures at 392, 518, 672 px, plain and mirrored, "
        f"{len(masks)} DAVIS frames at 518 px; encoded in {time.perf_counter() - start:.0f} s."
    )
    for layer, words in ((-1, "last layer"), (8, "layer 9 of 12")):
        print(f"\nForeground, {words}")
        foreground_table(encoded, masks, layer)
    print("\nShare of patches taken as foreground in pictures without an object, 518 px, last layer")
    for name in WITHOUT:
        f = backbone.encode(Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB"))
        print(f"  {name:46s} {ours_foreground(f, -1).mean():.2f}  (Otsu on the first component: "
              f"{otsu_border(f, -1).mean():.2f})")  # fmt: skip
    for layer, words in ((-1, "last layer"), (8, "layer 9 of 12")):
        print(f"\nColours when resolution and side change, {words}")
        colour_table(encoded, layer)
    print("\nColours when another picture joins, 518 px, last layer")
    joint_table(encoded, -1)
    several = [seen[BASE] for seen in encoded.values()][:6]
    for some in (several[:1], several):
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            fit(some).colours()
            times.append(time.perf_counter() - begin)
        print(f"\nfit and colours of {len(some)} picture(s) at 518 px: {1e3 * np.median(times):.0f} ms (median of 7)")
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
