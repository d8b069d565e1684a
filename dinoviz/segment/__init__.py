"""Segment objects from clicks, drawn masks or reference images, by the similarity of patch features."""

from dinoviz.segment.segmentation import (
    THRESHOLD,
    Concept,
    Example,
    Segmentation,
    apply,
    classes_from_reference,
    components,
    disjoint,
    fit,
    from_points,
    from_reference,
    layers_of,
)

__all__ = [
    "THRESHOLD",
    "Concept",
    "Example",
    "Segmentation",
    "apply",
    "classes_from_reference",
    "components",
    "disjoint",
    "fit",
    "from_points",
    "from_reference",
    "layers_of",
]
