"""Track the objects of a first frame's mask through a video, and read and write videos."""

from dinoviz.video.tracking import PUBLISHED, Propagator, Settings, Tracked, check_mask, propagate

__all__ = ["PUBLISHED", "Propagator", "Settings", "Tracked", "check_mask", "propagate"]
