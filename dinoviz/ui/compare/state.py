"""What the Compare tab's controls say, and what follows from it: one picture seen through A and through B."""

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


@dataclass(frozen=True)
class Choice:
    """What the controls say, in their order. layer: as `compare.layer_at` takes it, of each its own."""

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
                raise DinovizError(f"There is no {name} {getattr(self, name)!r}; there are {', '.join(known)}.")
        check_share("opacity", self.opacity)


@dataclass(frozen=True, eq=False)
class Panel:
    """One side: the picture through one model, at a layer (from 0). marks: as JSON holds them.

    kept: what was computed lately, for all who look.
    """

    kept: OnceCache
    look: Look
    layer: int
    choice: Choice
    marks: Sequence

    @cached_property
    def density(self) -> np.ndarray:
        """(h, w) attention as a multiple of an even spread. Raises DinovizError for a head that is not there."""
        return compare.density(self.look.features, self.choice.heads, self.layer)

    @cached_property
    def own_colours(self) -> np.ndarray:
        """(h, w, 3) of this model alone."""
        foreground = self.choice.foreground

        def make() -> np.ndarray:
            return pca.patch_pca([self.look.features], layer=self.layer, foreground=foreground)[0]

        return self.kept.get(("own", self.look.key, self.layer, foreground), make)

    @cached_property
    def found(self) -> Segmentation | None:
        """What was marked, at the size that is shown; None if nothing is marked as the thing."""
        marks = parse(self.marks, self.look.picture.size)
        if not len(marks):
            return None

        def make() -> tuple[Segmentation | None]:
            return (mask_of(marks, self.look.features, self.look.picture.shown),)

        return self.kept.get(("marked", self.look.key, json.dumps(self.marks)), make)[0]

    @property
    def seen(self) -> np.ndarray | Segmentation | None:
        """What the view shows of this side by itself. Raises DinovizError."""
        if self.choice.view == ATTENTION:
            return self.density
        return self.found if self.choice.view == SEGMENTATION else self.own_colours


def panel(kept: OnceCache, look: Look, choice: Choice, marks: Sequence) -> Panel | str:
    """One side as it is asked for, or in a sentence why it cannot be."""
    try:
        side = Panel(kept, look, compare.layer_at(choice.layer, look.backbone.layers), choice, marks)
        side.seen  # noqa: B018 - it is the computing that may fail
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
        return self.a.kept.get(("cka", self._key), lambda: compare.patch_cka(*features, layers=layers))

    @cached_property
    def coloured(self) -> tuple[np.ndarray, np.ndarray, Agreement]:
        """`compare.joint_colours`, by the method chosen."""
        features, layers = self._features
        how = {"method": self.a.choice.colours, "foreground": self.a.choice.foreground}

        def make() -> tuple:
            return compare.joint_colours(*features, layers=layers, **how)

        return self.a.kept.get(("joint", self._key, *how.values()), make)

    @property
    def _features(self) -> tuple[list, tuple[int, int]]:
        return [self.a.look.features, self.b.look.features], (self.a.layer, self.b.layer)
