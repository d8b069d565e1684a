"""Follow the masks of a video's first frame through all others, and read and write videos."""

from dinoviz.video.tracking import PUBLISHED, Propagator, Settings, Tracked, check_mask, propagate

__all__ = ["PUBLISHED", "Propagator", "Settings", "Tracked", "check_mask", "propagate"]
