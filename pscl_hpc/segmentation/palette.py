"""Class colours for overlays and reports, distinguishable with common forms of colour blindness."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

Rgb = tuple[int, int, int]

BACKGROUND: Rgb = (110, 110, 110)
# Seven colours of Okabe and Ito (2008), without black, ordered for contrast on a grey micrograph; then five of Paul
# Tol's "muted" scheme (SRON/EPS/TN/09-002).
_NAMED: tuple[Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (51, 34, 136),
    (136, 34, 85),
    (153, 153, 51),
    (68, 170, 153),
    (221, 204, 119),
)
_GOLDEN = 0.618033988749895
_LIGHTNESS = (0.35, 0.55, 0.75)


def class_colours(count: int, background: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 3) RGB by class index: grey for the background, then twelve fixed colours, then generated ones.

    The colour of a class does not depend on the number of classes.
    """
    colours = [_foreground(place) for place in range(count)]
    colours.insert(background, BACKGROUND)
    return np.array(colours[:count], np.uint8).reshape(-1, 3)


def hex_colour(rgb: npt.NDArray[np.uint8] | Rgb) -> str:
    """The colour as ``#rrggbb``."""
    return "#" + "".join(f"{int(value):02x}" for value in rgb)


def _foreground(place: int) -> Rgb:
    if place < len(_NAMED):
        return _NAMED[place]
    extra = place - len(_NAMED)
    # Steps of the golden ratio do not repeat a hue; consecutive colours also differ in lightness.
    rgb = colorsys.hls_to_rgb((0.07 + extra * _GOLDEN) % 1, _LIGHTNESS[extra % len(_LIGHTNESS)], 0.65)
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue
