"""Two views of an image: geometry and intensity."""

from pscl_hpc.views.geometry import (
    ViewGeometry,
    class_shares,
    draw_geometry,
    paired_patches,
    partner_patches,
    view_to_source,
    warp,
)
from pscl_hpc.views.intensity import jitter

__all__ = [
    "ViewGeometry",
    "class_shares",
    "draw_geometry",
    "jitter",
    "paired_patches",
    "partner_patches",
    "view_to_source",
    "warp",
]
