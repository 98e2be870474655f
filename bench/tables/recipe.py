"""Tables of choices of the default recipe."""

from __future__ import annotations

from bench.tables.common import load, origin, table


def trials(name: str) -> str:
    """Validation Dice of each trial with each annotated image, and the mean minutes of a training."""
    content = load(name)
    rows = content["result"]["rows"]
    images = sorted({row["image"] for row in rows}, reverse=True)
    lines = []
    for trial in dict.fromkeys(row["trial"] for row in rows):
        found = {row["image"]: row for row in rows if row["trial"] == trial}
        scores = [f"{found[image]['validation_dice']:.3f}" if image in found else "-" for image in images]
        minutes = sum(row["seconds"] for row in found.values()) / len(found) / 60
        lines.append([trial, *scores, f"{minutes:.1f}"])
    return table(["trial", *(image.partition("/")[2] for image in images), "minutes"], lines) + origin(
        name, content
    )


def large_images(name: str) -> str:
    """Dice on images with more pixels, with and without resizing."""
    content = load(name)
    rows = content["result"]["rows"]
    lines = [
        [
            row["resize"],
            f"{row['factor']:g}",
            f"{row['validation_dice']:.3f}",
            *map(_dice, row["dice"].values()),
        ]
        for row in rows
    ]
    head = ["resize", "factor", "mean Dice", *rows[0]["dice"]]
    return table(head, lines) + origin(name, content)


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
