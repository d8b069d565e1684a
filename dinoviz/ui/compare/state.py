"""What the Compare tab computes: one picture encoded by model A and by model B, and how far the two agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dinoviz import compare, pca
from dinoviz.attention import MEAN
from dinoviz.cache import OnceCache
from dinoviz.compare import Agreement
from dinoviz.errors import DinovizError, check_share
from dinoviz.segment.prompts import mask_of, parse
from dinoviz.segment.segmentation import Segmentation
from dinoviz.ui.workbench import Look

SIDES = ("A", "B")
ATTENTION, PCA, SEGMENTATION = "attention", "patch PCA", "segmentation"
VIEWS = (ATTENTION, PCA, SEGMENTATION)
COMMON, OWN = "common", "own"
SCALES, COLOURS = (COMMON, OWN), (*compare.METHODS, OWN)
AS_A = "as A"


@dataclass(frozen=True)
class Inputs:
    """What is compared: a picture, and for A and B each a model and a resolution."""

    image: str | None
    model_a: str | None
    resolution_a: str
    model_b: str | None
    resolution_b: str

    @property
    def sides(self) -> tuple[tuple[str | None, str], tuple[str | None, str]]:
        """Model and resolution of A and of B."""
        other = self.resolution_a if self.resolution_b == AS_A else self.resolution_b
        return (self.model_a, self.resolution_a), (self.model_b, other)

    @property
    def complete(self) -> bool:
        """Whether there are a picture and two models."""
        return bool(self.image and self.model_a and self.model_b)


@dataclass(frozen=True)
class ViewSettings:
    """The values of the tab's controls, in the order of the API's parameters. Raises DinovizError.

    layer: as `compare.layer_at` takes it, for each model on its own.
    """

    view: str = ATTENTION
    layer: str = compare.LAST
    heads: str = MEAN
    scale: str = COMMON
    colours: str = "aligned"
    foreground: bool = True
    raw: bool = False
    opacity: float = 0.8

    def __post_init__(self):
        for name, known in (("view", VIEWS), ("scale", SCALES), ("colours", COLOURS)):
            if getattr(self, name) not in known:
                raise DinovizError(f"{name} {getattr(self, name)!r}: choose {', '.join(known)}.")
        check_share("opacity", self.opacity)


@dataclass(frozen=True, eq=False)
class Panel:
    """One side: a look, at a layer (from 0). marks: decoded JSON. cache: shared by all sessions."""

    cache: OnceCache
    look: Look
    layer: int
    settings: ViewSettings
    marks: Sequence

    @cached_property
    def density(self) -> np.ndarray:
        """(h, w) attention as a multiple of uniform attention. Raises DinovizError for a head that does not exist."""
        return compare.density(self.look.features, self.settings.heads, self.layer)

    @cached_property
    def own_colours(self) -> np.ndarray:
        """(h, w, 3) patch PCA of this model alone."""
        foreground = self.settings.foreground

        def make() -> np.ndarray:
            return pca.patch_pca([self.look.features], layer=self.layer, foreground=foreground)[0]

        return self.cache.get(("own", self.look.key, self.layer, foreground), make)

    @cached_property
    def segmentation(self) -> Segmentation | None:
        """The marked object, at the size of the picture on the page; None where no object is marked."""
        marks = parse(self.marks, self.look.picture.size)
        if not len(marks):
            return None

        def make() -> tuple[Segmentation | None]:
            return (mask_of(marks, self.look.features, self.look.picture.shown),)

        return self.cache.get(("marked", self.look.key, json.dumps(self.marks)), make)[0]

    @property
    def values(self) -> np.ndarray | Segmentation | None:
        """What the view draws of this side by itself. Raises DinovizError."""
        if self.settings.view == ATTENTION:
            return self.density
        return self.segmentation if self.settings.view == SEGMENTATION else self.own_colours


def panel(cache: OnceCache, look: Look, settings: ViewSettings, marks: Sequence) -> Panel | str:
    """One side, or an error message where it cannot be drawn."""
    try:
        side = Panel(cache, look, compare.layer_at(settings.layer, look.backbone.layers), settings, marks)
        side.values  # noqa: B018 - it is the computing that may fail
    except DinovizError as error:
        return str(error)
    return side


@dataclass(frozen=True, eq=False)
class Pair:
    """Both sides of one picture."""

    a: Panel
    b: Panel

    @property
    def _key(self) -> tuple:
        return tuple((side.look.key, side.layer) for side in (self.a, self.b))

    @cached_property
    def cka(self) -> tuple[float, int]:
        """`compare.patch_cka`."""
        features, layers = self._features
        return self.a.cache.get(("cka", self._key), lambda: compare.patch_cka(*features, layers=layers))

    @cached_property
    def joint_colours(self) -> tuple[np.ndarray, np.ndarray, Agreement]:
        """`compare.joint_colours`, by the selected method."""
        features, layers = self._features
        options = {"method": self.a.settings.colours, "foreground": self.a.settings.foreground}

        def make() -> tuple:
            return compare.joint_colours(*features, layers=layers, **options)

        return self.a.cache.get(("joint", self._key, *options.values()), make)

    @property
    def _features(self) -> tuple[list, tuple[int, int]]:
        return [self.a.look.features, self.b.look.features], (self.a.layer, self.b.layer)
