"""Sampled patches and features of a pretraining as figures for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pscl_hpc.report.curves import scale_name
from pscl_hpc.report.pictures import image_uri, labels_uri
from pscl_hpc.results.inspection import Inspection, ScaleInspection
from pscl_hpc.segmentation.palette import class_colours, hex_colour

MOST_IMAGES = 6
IMAGE_SIDE, FEATURE_SIDE = 384, 256
_CORNERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),  # a circle
    ((-0.89, -0.89), (0.89, -0.89), (0.89, 0.89), (-0.89, 0.89)),
    ((0.0, -1.22), (1.22, 0.0), (0.0, 1.22), (-1.22, 0.0)),
    ((0.0, -1.2), (1.2, 0.9), (-1.2, 0.9)),
)
"""Markers of classes as corners of a shape of radius 1; all shapes have about the same area."""


@dataclass(frozen=True)
class ClassStyle:
    """A class as the legend shows it: colour, and marker outline around (0, 0) with radius 1."""

    name: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Markers:
    """All sampled patches of one class in one image: an SVG path each, in pixels of the image."""

    style: ClassStyle
    paths: tuple[str, ...]


@dataclass(frozen=True)
class ScaleFigure:
    """One scale of one image."""

    name: str
    markers: tuple[Markers, ...]
    sampled: int
    purity: float | None
    features: str
    """Data URI of the PCA colour map."""


@dataclass(frozen=True)
class ImageFigure:
    """One image with its samples and features."""

    id: str
    reference: bool
    width: int
    height: int
    image: str
    mask: str
    """Data URI, empty where there is no annotation in the classes of the references."""
    scales: tuple[ScaleFigure, ...]
    pictures: tuple[tuple[str, str], ...]
    """Pictures of the method: name and data URI."""
    line: float
    """Width of marker outlines in pixels of the image."""


def class_styles(names: tuple[str, ...], background: int = 0) -> tuple[ClassStyle, ...]:
    """Colours and marker shapes of a class list."""
    colours = class_colours(len(names), background)
    return tuple(
        ClassStyle(name, hex_colour(colours[index]), marker(index, 0.0, 0.0, 1.0))
        for index, name in enumerate(names)
    )


def explanation(inspection: Inspection) -> str:
    """What the figures show and how good ones look."""
    text = ""
    if any(len(scale.classes) for scale in inspection.scales):
        if inspection.references:
            text = (
                "In pretraining each image contributes patches that resemble those of the annotated image. Markers "
                "should be on regions of their class: compare them with the micrograph, and with the annotation where "
                "there is one. "
            )
        else:
            text = (
                "No image was annotated: in pretraining each image contributes patches of each cluster of its pixels. "
                "Markers of one cluster should be on one phase; which one is not known to the method. "
            )
    if inspection.pictures:
        text += f"Further pictures of the method: {', '.join(inspection.pictures)}. "
    return text + (
        "Features are shown as colours (their first three principal components): regions of one phase should have one "
        "colour, different phases different colours, and noise or scratches should not be visible."
    )


def image_figures(inspection: Inspection) -> list[ImageFigure]:
    """References first, then the other images, at most :data:`MOST_IMAGES` in all."""
    styles = class_styles(inspection.classes)
    colours = class_colours(len(inspection.classes))
    count, height, width = inspection.images.shape
    scales = len(inspection.scales)
    # Masks of another collection have other classes and cannot be shown in these colours.
    home = {name.partition("/")[0] for name in inspection.ids[: inspection.references]}
    annotated = [
        name.partition("/")[0] in home and bool((labels < len(colours)).any())
        for name, labels in zip(inspection.ids, inspection.labels, strict=True)
    ]
    # At least one annotated image and one other.
    references = min(inspection.references, max(1, MOST_IMAGES - (count - inspection.references)))
    chosen = [*range(references), *range(inspection.references, count)][:MOST_IMAGES]
    return [
        ImageFigure(
            id=inspection.ids[index],
            reference=index < inspection.references,
            width=width,
            height=height,
            image=image_uri(inspection.images[index], IMAGE_SIDE),
            mask=labels_uri(inspection.labels[index], colours, IMAGE_SIDE) if annotated[index] else "",
            scales=tuple(
                _scale(scale, index, styles, (height, width), scale_name(place, scales))
                for place, scale in enumerate(inspection.scales)
            ),
            pictures=tuple(
                (name, image_uri(images[index], IMAGE_SIDE)) for name, images in inspection.pictures.items()
            ),
            line=max(height, width) / 150,
        )
        for index in chosen
    ]


def marker(class_index: int, x: float, y: float, radius: float) -> str:
    """An SVG path around (x, y). Classes differ in shape as well as colour."""
    corners = _CORNERS[class_index % len(_CORNERS)]
    if not corners:
        r = f"{radius:.2f}"
        return (
            f"M{x - radius:.2f} {y:.2f}a{r} {r} 0 1 0 {2 * radius:.2f} 0a{r} {r} 0 1 0 {-2 * radius:.2f} 0z"
        )
    return "M" + "L".join(f"{x + radius * a:.2f} {y + radius * b:.2f}" for a, b in corners) + "z"


def _scale(
    scale: ScaleInspection, image: int, styles: tuple[ClassStyle, ...], size: tuple[int, int], name: str
) -> ScaleFigure:
    steps = np.array([size[0] / scale.grid[0], size[1] / scale.grid[1]])
    # A patch of the finest scale is one pixel, too small to see.
    radius = max(float(steps.min()) / 2, max(size) / 70)
    patches = scale.patches[image]
    taken = (patches >= 0).all(axis=1) & (scale.classes >= 0) & (scale.classes < len(styles))
    found = []
    for index, style in enumerate(styles):
        chosen = patches[taken & (scale.classes == index)]
        centres = (chosen + 0.5) * steps
        if len(chosen):
            paths = tuple(marker(index, float(x), float(y), radius) for y, x in centres)
            found.append(Markers(style, paths))
    purity = float(scale.purity[image])
    return ScaleFigure(
        name=name,
        markers=tuple(found),
        sampled=int(taken.sum()),
        purity=purity if math.isfinite(purity) else None,
        features=image_uri(scale.pca[image], FEATURE_SIDE),
    )
