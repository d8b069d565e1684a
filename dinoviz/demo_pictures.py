"""Where the pictures of scikit-image and scikit-learn are: examples that need no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def demo_path(name: str) -> Path | None:
    """The path of a file that ships inside one of the two packages, "chelsea.png" for example; None if it does not.

    A lookup of our own, since the functions of `skimage.data` may download files.
    """
    import skimage
    import sklearn

    folders = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
