"""Tables of archives and of synthetic alloys."""

from __future__ import annotations

from bench.tables.common import load, origin, table


def archive_rate(name: str) -> str:
    """Random windows per second by compression."""
    content = load(name)
    rows = []
    for row in content["result"]["rows"]:
        plain, masks = row.get("crops_per_second_h5py"), row.get("mask_crops_per_second")
        rows.append(
            [
                row["dtype"],
                row["compression"],
                f"{row['crops_per_second']:,}",
                f"{plain:,}" if plain else "-",
                f"{row['stored_per_raw']:.2f}",
                f"{masks:,}" if masks else "-",
                f"{row['mask_stored_per_raw']:.2f}" if masks else "-",
            ]
        )
    head = ["dtype", "compression", "crops/s", "the same by h5py", "size", "mask crops/s", "mask size"]
    return table(head, rows) + origin(name, content)


def synthetic(name: str) -> str:
    """Class shares and what grey level alone can do."""
    content = load(name)
    rows = []
    for family, found in content["result"]["families"].items():
        shares = " / ".join(f"{100 * value:.1f}" for value in found["share"])
        levels = " / ".join(f"{value:.2f}" for value in found["best_dice_by_grey_level"][1:])
        rows.append([family, shares, levels, f"{100 * found['images_with_rare_class']:.0f}%"])
    head = [
        "family",
        "share of classes 0 / 1 / 2 / 3, %",
        "best Dice by grey level, 1 / 2 / 3",
        "images with class 3",
    ]
    return table(head, rows) + origin(name, content)
