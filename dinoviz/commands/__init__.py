"""The commands of `python -m dinoviz`, one module each, with `add(commands, options)` to add its parser.

`options` is a parent parser with the options of all views, see `common.view_options`.
"""

from dinoviz.commands import attention, compare, depth, pca, segment, video

ALL = (attention, pca, segment, depth, video, compare)
__all__ = ["ALL", "attention", "compare", "depth", "pca", "segment", "video"]
