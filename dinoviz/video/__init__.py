"""Track the objects of a first frame's mask through a video, and read and write videos."""

from dinoviz.video.io import Clip, ClipError, VideoWriter, open_clip
from dinoviz.video.tracking import PUBLISHED, Propagator, Settings, Tracked, check_mask, propagate

__all__ = [
    "PUBLISHED",
    "Clip",
    "ClipError",
    "Propagator",
    "Settings",
    "Tracked",
    "VideoWriter",
    "check_mask",
    "open_clip",
    "propagate",
]
