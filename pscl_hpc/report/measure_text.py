"""Sentences, tiles and tables of the page of measurements."""

from __future__ import annotations

from pscl_hpc.metallography.record import ImageResult, Measurements, Result
from pscl_hpc.metallography.summary import ABSOLUTE_ERROR, ERROR, GRAINS, MICROMETRE
from pscl_hpc.report.story import Tile
from pscl_hpc.report.table import Table

MU = "\N{MICRO SIGN}m"
NONE = "\N{EN DASH}"


def main_fraction(record: Measurements, phase: str) -> Result | None:
    """The corrected fraction where there is one, else the plain one."""
    return record.find(phase, "corrected fraction") or record.find(phase, "fraction")


def shown_fraction(image: ImageResult, phase: str) -> float | None:
    """As :func:`main_fraction`, for one image."""
    found = image.phases[phase]
    return found.fraction if found.corrected_fraction is None else found.corrected_fraction


def title(record: Measurements) -> str:
    count = len(record.images)
    what = "masks" if record.masks else "images"
    return f"Phases in {count} {what}" if count > 1 else f"Phases in one {what[:-1]}"


def sentences(record: Measurements) -> list[str]:
    found = []
    for name in record.kept:
        row = main_fraction(record, name)
        if row is not None and row.value is not None and name != record.classes[record.background]:
            found.append(f"{name} {_percent(row)}".replace(" %", "\N{NO-BREAK SPACE}%"))
    lines = [f"Fractions of the area, with 95% intervals from image to image: {'; '.join(found)}."]
    for quantity in ("ASTM grain size G (planimetric)", "mean lineal intercept"):
        row = record.find(GRAINS, quantity)
        if row is not None and row.value is not None:
            lines.append(f"{quantity}: {_number(row)}{f' {unit_text(row.unit)}' if row.unit else ''}.")
    if record.correction is not None:
        lines.append(
            f"The fractions are corrected by the errors of the model on {record.correction.images} validation images."
        )
    elif not record.masks:
        lines.append(_errors(record))
    return lines


def _errors(record: Measurements) -> str:
    """What is known of the errors of the model without a correction."""
    compared = [
        row for name in record.kept if (row := record.find(name, ABSOLUTE_ERROR)) and row.value is not None
    ]
    if compared:
        shown = "; ".join(f"{row.phase} {100 * (row.value or 0):.1f}" for row in compared)
        count = compared[0].images
        return (
            f"The intervals do not include the errors of the model. On the {count} image{'s' if count != 1 else ''} with a "
            f"mask that it was not trained on, the mean error of the fraction in percentage points is: {shown}."
        )
    return (
        "The errors of the model are not known, because there are no annotated images besides those that it was "
        "trained on: the intervals do not include them. Masks of a few more images show them: pscl-hpc measure RUN "
        "IMAGES --masks DIR."
    )


def tiles(record: Measurements) -> list[Tile]:
    made = []
    for name in record.kept:
        row, plain = main_fraction(record, name), record.find(name, "fraction")
        if row is None or row.value is None or name == record.classes[record.background]:
            continue
        interval = ""
        if row.low is not None and row.high is not None:
            interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
        notes = []
        if row is not plain and plain is not None and plain.value is not None:
            notes.append(f"as predicted {100 * plain.value:.1f} %")
        truth = record.find(name, "fraction in the masks")
        if truth is not None and truth.value is not None:
            notes.append(f"in the masks {100 * truth.value:.1f} %")
        error = record.find(name, ABSOLUTE_ERROR)
        if error is not None and error.value is not None:
            notes.append(f"mean error of an image {100 * error.value:.1f} percentage points")
        size = record.find(name, "mean diameter")
        if size is not None and size.value is not None:
            notes.append(f"mean diameter {_length(size.value, size.unit)}")
        made.append(Tile(f"{100 * row.value:.1f} %", interval, name, "; ".join(notes)))
    return made


def fraction_table(record: Measurements) -> Table:
    columns = [
        ("fraction", "as predicted"),
        ("corrected fraction", "corrected"),
        ("fraction in the masks", "in the masks"),
        ("fraction in the same pixels", "predicted, same images"),
        (ERROR, "error, percentage points"),
    ]
    used = [(key, title) for key, title in columns if any(record.find(name, key) for name in record.kept)]
    if all(_same(record, name) for name in record.kept):
        used = [column for column in used if column[0] != "fraction in the same pixels"]
    if record.masks:
        used = [("fraction", "in the masks")]
    rows = tuple(
        (
            name,
            *(
                (_points(row) if key == ERROR else _percent(row))
                if (row := record.find(name, key)) and row.value is not None
                else NONE
                for key, _ in used
            ),
        )
        for name in record.kept
    )
    return Table(("Phase", *(title for _, title in used)), rows)


def _same(record: Measurements, name: str) -> bool:
    """Whether the masks leave no pixel of the predictions out."""
    values = [record.find(name, key) for key in ("fraction", "fraction in the same pixels")]
    return len({round(row.value, 9) for row in values if row and row.value is not None}) < 2


def particle_table(record: Measurements) -> Table | None:
    names = [*record.phases, *([GRAINS] if record.boundary else [])]
    quantities = list(
        dict.fromkeys(row.quantity for row in record.results if row.phase in names and "fraction" not in row.quantity)
    )  # fmt: skip
    if not quantities:
        return None
    rows = []
    for quantity in quantities:
        found = [record.find(name, quantity) for name in names]
        unit, _ = _per_large_area(next(row.unit for row in found if row))
        rows.append(
            (f"{quantity}, {unit}" if unit else quantity, *(_number(row) if row else "" for row in found))
        )
    return Table(("", *names), tuple(rows))


def image_table(record: Measurements) -> Table:
    rows = []
    for image in record.images:
        cells = []
        for name in record.kept:
            phase, value = image.phases[name], shown_fraction(image, name)
            text = NONE if value is None else f"{100 * value:.1f}"
            if phase.fraction_in_mask is not None:
                text += f" (mask {100 * phase.fraction_in_mask:.1f})"
            cells.append(text)
        sure = NONE if image.mean_confidence is None else f"{100 * image.mean_confidence:.1f}"
        rows.append((image.name, *cells, sure))
    return Table(("Image", *(f"{name}, %" for name in record.kept), "confidence, %"), tuple(rows))


def confusion_table(record: Measurements) -> Table | None:
    if record.correction is None:
        return None
    kept = [record.classes.index(name) for name in record.kept]
    rows = tuple(
        (
            record.classes[predicted],
            *(f"{100 * record.correction.matrix[true][predicted]:.1f}" for true in kept),
        )
        for predicted in kept
    )
    return Table(("Predicted as", *(f"is {record.classes[true]}, %" for true in kept)), rows)


def _points(row: Result) -> str:
    """A difference of fractions in percentage points."""
    assert row.value is not None
    text = f"{100 * row.value:+.1f}"
    return (
        text
        if row.low is None or row.high is None
        else f"{text} ({100 * row.low:+.1f} to {100 * row.high:+.1f})"
    )


def _percent(row: Result) -> str:
    assert row.value is not None
    text = f"{100 * row.value:.1f} %"
    if row.low is None or row.high is None:
        return text
    return f"{text} ({100 * row.low:.1f} to {100 * row.high:.1f})"


def _number(row: Result) -> str:
    """Value and interval without the unit."""
    if row.value is None:
        return NONE
    _, factor = _per_large_area(row.unit)
    if not row.images and not row.unit:
        return f"{row.value:.0f}"
    if row.low is None or row.high is None:
        return _short(factor * row.value)
    return f"{_short(factor * row.value)} ({_short(factor * row.low)} to {_short(factor * row.high)})"


def _short(value: float) -> str:
    """Three significant digits, all digits of whole numbers, no exponent for usual sizes."""
    if 1000 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _per_large_area(unit: str) -> tuple[str, float]:
    """The unit as text, and the factor to it: numbers per area are given for mm\N{SUPERSCRIPT TWO} or a million pixels."""
    large = {f"1/{MICROMETRE}2": "per mm\N{SUPERSCRIPT TWO}", "1/px2": "per million pixels"}
    return (large[unit], 1e6) if unit in large else (unit_text(unit), 1.0)


def _length(value: float, unit: str) -> str:
    return f"{value:.3g} {unit_text(unit)}"


def unit_text(unit: str) -> str:
    return unit.replace(MICROMETRE, MU).replace("2", "\N{SUPERSCRIPT TWO}")
