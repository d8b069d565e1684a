"""`import dinoviz`: the views are attributes without further imports, and importing is fast."""

import subprocess
import sys
from pathlib import Path

import dinoviz

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
import dinoviz
assert not {"torch", "numpy", "transformers"} & set(sys.modules), "slow imports"
assert dir(dinoviz) == sorted([*dinoviz.__all__, "__version__"])
functions = (
    dinoviz.load, dinoviz.attention.cls_attention, dinoviz.compare.joint_colours, dinoviz.depth.predict,
    dinoviz.pca.patch_pca, dinoviz.render.map_picture, dinoviz.segment.from_points, dinoviz.video.propagate,
)
assert all(map(callable, functions))
assert not [name for name in dinoviz.__all__ if not hasattr(dinoviz, name)]
"""


def test_the_views_need_no_further_import():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_unknown_attribute_is_an_attribute_error():
    assert not hasattr(dinoviz, "gallery_of_cats")


def test_packages_have_what_they_name():
    from dinoviz import commands, depth, segment, video

    for package in (commands, depth, segment, video):
        assert package.__doc__
        assert not [name for name in package.__all__ if not hasattr(package, name)]
