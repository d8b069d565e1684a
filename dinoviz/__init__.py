"""Look inside self-supervised vision transformers (DINO, DINOv2, DINOv3).

backbone = dinoviz.load("dinov2-small")
features = backbone.encode("cat.jpg", resolution=518)
maps = dinoviz.attention.cls_attention(features)  # (heads, h, w)
"""

from importlib import import_module

from dinoviz.errors import DinovizError, Stopped
from dinoviz.models import load

__version__ = "0.1.0"
VIEWS = ("attention", "compare", "depth", "pca", "render", "segment", "video")
__all__ = ["DinovizError", "Stopped", "load", *VIEWS]


def __getattr__(name: str):
    # The views import numpy and torch; `python -m dinoviz --help` should not wait for them.
    if name in VIEWS:
        return import_module(f"dinoviz.{name}")
    raise AttributeError(f"module 'dinoviz' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
