"""Metric depth from frozen patch features: probes, published heads, cameras, and point clouds."""

from dinoviz.depth.camera import Camera, exif_focal
from dinoviz.depth.probe import (
    ASSETS,
    SHIPPED,
    Depth,
    Probe,
    ProbeError,
    check_about,
    descriptor,
    joined,
    look,
    open_probe,
    predict,
    probe_file,
    save_probe,
    unfamiliarity,
)

__all__ = [
    "ASSETS",
    "SHIPPED",
    "Camera",
    "Depth",
    "Probe",
    "ProbeError",
    "check_about",
    "descriptor",
    "exif_focal",
    "joined",
    "look",
    "open_probe",
    "predict",
    "probe_file",
    "save_probe",
    "unfamiliarity",
]
