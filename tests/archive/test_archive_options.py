"""The options by which an image was packed are recorded with it, are kept by copies, and are not part of the
content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import (
    AUTO_CROP,
    MAX_SIDE,
    IngestOptions,
    options_from_json,
    options_from_tree,
    options_to_json,
)
from pscl_hpc.cli.main import main
from pscl_hpc.errors import UserError

from .archives import PLAIN, pixels

NARROW = IngestOptions((1.0, 99.0), True, 4)
TREE = {"percentiles": [0.5, 99.5], "colour": "keep", "crop_bottom": 0}


def deep_images(folder: Path, *numbers: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        tifffile.imwrite(folder / f"{number}.tif", pixels((30, 40), "uint16", seed=number))
    return folder


def packed(folder: Path, out: Path, options: IngestOptions, shard_bytes: int | None = None) -> Archive:
    build(plan([folder]), out, BuildOptions(**vars(options)), shard_bytes=shard_bytes)
    return Archive(out)


def write_fixed(path: Path, ingest: IngestOptions | None) -> None:
    """Two images, the same for every ``ingest``."""
    steel = Collection("steel", ("matrix", "carbide"), 0, (), ("steel/a",))
    image = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 37
    with ShardWriter(path, [steel], percentiles=(1, 99)) as writer:
        writer.add(
            image,
            mask=(image % 2).astype(np.uint8),
            id="steel/a",
            dataset="steel",
            split="train",
            specimen="s1",
            um_per_pixel=0.25,
            ingest=ingest,
        )
        writer.add(
            image.astype(np.uint8)[:7],
            id="steel/b",
            dataset="steel",
            source="x/b.png",
            sha256="0" * 64,
            ingest=ingest,
        )


@pytest.mark.parametrize("ingest", [None, IngestOptions(), NARROW])
def test_the_record_does_not_enter_the_fingerprint(tmp_path: Path, ingest: IngestOptions | None) -> None:
    write_fixed(tmp_path / "a.h5", ingest)
    archive = Archive(tmp_path / "a.h5")
    assert [record.ingest for record in archive.records] == [ingest, ingest]
    # As it was before there were records: keys of finished runs are made from it.
    assert archive.fingerprint == "52f11cb366ea3f217f534cd18121ec30d3c2af42414094b4bf7e28ae90507356"


def _forget(path: Path, text: bytes = b"") -> None:
    """Replace the recorded options of all images."""
    with h5py.File(path, "r+") as file:
        for group in (file, *file.get("added", {}).values()):
            names = np.full(len(group["names/ingest"]), text, f"S{max(1, len(text))}")
            del group["names/ingest"]
            group["names"].create_dataset("ingest", data=names)


def test_an_archive_without_the_record_is_read(tmp_path: Path) -> None:
    write_fixed(tmp_path / "a.h5", NARROW)
    before = Archive(tmp_path / "a.h5")
    unit = before.read_unit(0)
    _forget(tmp_path / "a.h5")
    after = Archive(tmp_path / "a.h5")
    assert [record.ingest for record in after.records] == [None, None]
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.read_unit(0), unit)


@pytest.mark.parametrize("shard_bytes", [None, 3000])
def test_each_image_keeps_the_options_of_its_build(tmp_path: Path, shard_bytes: int | None) -> None:
    out = tmp_path / ("shards" if shard_bytes else "a.h5")
    source = deep_images(tmp_path / "x", 0, 2)
    assert {record.ingest for record in packed(source, out, NARROW, shard_bytes).records} == {NARROW}
    wide = IngestOptions((0.0, 100.0), False, AUTO_CROP)
    grown = packed(deep_images(source, 1, 3), out, wide, shard_bytes)
    assert [record.ingest for record in grown.records] == [NARROW, wide, NARROW, wide]
    assert [record.height for record in grown.records] == [26, 30, 26, 30]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], 0),
        (["--percentiles", "1,99"], 2),
        (["--crop-bottom", "auto"], 3),
        (["--colour", "luma"], 1),
    ],
)
def test_images_that_stay_packed_with_other_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], named: int
) -> None:
    """Only images that the option affects: percentiles for 16-bit images, colour for colour images."""
    source = deep_images(tmp_path / "x", 0, 1)
    tifffile.imwrite(source / "colour.tif", pixels((30, 40, 3)), photometric="rgb")
    command = ["archive", "build", str(source), "--out", str(tmp_path / "a.h5")]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, *flags]) == 0
    shown = capsys.readouterr()
    assert "0 images added, 3 unchanged, 0 skipped; 3 in the archive" in shown.out
    warnings = shown.err.splitlines()
    assert len(warnings) == bool(named)
    if named:
        more = f" and {named - 1} more" if named > 1 else ""
        first = "x/colour" if "--colour" in flags else "x/0"
        assert warnings[0].startswith(f"warning: {first}{more} of the unchanged images")
        assert " ".join(flags) in warnings[0]
    assert main([*command, *flags, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["with_other_options"]) == named
    if named:
        _forget(tmp_path / "a.h5")
        assert main([*command, *flags]) == 0
        assert not capsys.readouterr().err, "options that are not recorded are not compared"


def test_an_archive_without_the_record_grows(tmp_path: Path) -> None:
    source = deep_images(tmp_path / "x", 0)
    packed(source, tmp_path / "a.h5", IngestOptions())
    _forget(tmp_path / "a.h5")
    grown = packed(deep_images(source, 1), tmp_path / "a.h5", NARROW)
    assert [record.ingest for record in grown.records] == [None, NARROW]


def _words(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The printed lines with single spaces."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_info_shows_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.h5"
    packed(deep_images(tmp_path / "x", 0, 1), out, NARROW)
    shown = "packed --percentiles 1,99 --colour luma --crop-bottom 4"
    assert main(["archive", "info", str(out)]) == 0
    assert shown in _words(capsys)
    packed(deep_images(tmp_path / "x", 2), out, IngestOptions(crop_bottom=AUTO_CROP))
    assert main(["archive", "info", str(out)]) == 0
    both = (
        "packed --percentiles 0.5,99.5 --colour keep --crop-bottom auto (1 image); "
        "--percentiles 1,99 --colour luma --crop-bottom 4 (2 images)"
    )
    assert both in _words(capsys)
    assert main(["archive", "info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["collections"][0]["packed"] == [
        {
            "options": {"percentiles": [0.5, 99.5], "colour": "keep", "crop_bottom": "auto"},
            "images": 1,
        },
        {"options": {"percentiles": [1.0, 99.0], "colour": "luma", "crop_bottom": 4}, "images": 2},
    ]
    _forget(out)
    assert main(["archive", "info", str(out)]) == 0
    assert "packed" not in capsys.readouterr().out


@given(
    low=st.floats(0, 100),
    high=st.floats(0, 100),
    luma=st.booleans(),
    crop=st.just(AUTO_CROP) | st.integers(0, MAX_SIDE),
)
def test_the_record_says_what_was_done(low: float, high: float, luma: bool, crop: int) -> None:
    if not low < high:
        with pytest.raises(ValueError, match="percentiles"):
            IngestOptions((low, high), luma, crop)
        return
    options = IngestOptions((low, high), luma, crop)
    assert options_from_json(options_to_json(options)) == options
    words = str(options).split()
    assert tuple(float(part) for part in words[1].split(",")) == (low, high)


HOSTILE: list[Any] = [
    [],
    "keep",
    None,
    {},
    {"colour": "keep"},
    {**TREE, "more": 1},
    {**TREE, "percentiles": "0,99"},
    {**TREE, "percentiles": [1]},
    {**TREE, "percentiles": [1, 2, 3]},
    {**TREE, "percentiles": [99, 1]},
    {**TREE, "percentiles": [50, 50]},
    {**TREE, "percentiles": [-1, 99]},
    {**TREE, "percentiles": [1, 101]},
    {**TREE, "percentiles": [False, True]},
    {**TREE, "percentiles": ["1", "99"]},
    {**TREE, "percentiles": [1, 10**400]},
    {**TREE, "percentiles": [float("nan"), 99]},
    {**TREE, "percentiles": [1, float("inf")]},
    {**TREE, "percentiles": [[1], {}]},
    {**TREE, "colour": "sepia"},
    {**TREE, "colour": []},
    {**TREE, "colour": True},
    {**TREE, "crop_bottom": -1},
    {**TREE, "crop_bottom": 1.5},
    {**TREE, "crop_bottom": True},
    {**TREE, "crop_bottom": "some"},
    {**TREE, "crop_bottom": 10**30},
    {**TREE, "crop_bottom": [3]},
]


@pytest.mark.parametrize("tree", HOSTILE, ids=str)
def test_a_malformed_record_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match=r"ingest option|percentiles must"):
        options_from_tree(tree)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[" * 900,
        "[" * 100_000,
        json.dumps({**TREE, "colour": "x" * 10**6}),
        json.dumps({**TREE, "percentiles": [float("nan"), 99]}),
        json.dumps(TREE).replace("99.5", "1" * 900),
        "\x1b[2J",
    ],
    ids=lambda text: text[:20],
)
def test_an_archive_with_a_malformed_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.h5"
    write_fixed(path, NARROW)
    _forget(path, text.encode())
    with pytest.raises(UserError, match=r"a\.h5.*(ingest|percentiles)") as caught:
        Archive(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


def test_a_record_of_another_shape_or_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for change, message in (
        (lambda names: names.create_dataset("ingest", data=np.zeros(2)), "ingest"),
        (lambda names: names.create_dataset("ingest", data=np.array([], "S9")), "ingest of steel/a"),
        (
            lambda names: names.__setitem__("ingest", h5py.ExternalLink("/etc/hostname", "/")),
            "ingest is a link",
        ),
        (lambda names: names.__setitem__("ingest", h5py.SoftLink("/names/split")), "ingest is a link"),
    ):
        write_fixed(path, NARROW)
        with h5py.File(path, "r+") as file:
            del file["names/ingest"]
            change(file["names"])
        with pytest.raises(UserError, match=message):
            Archive(path)


def test_an_image_without_a_file_has_no_record(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [PLAIN]) as writer:
        writer.add(pixels((4, 4)), id="plain/a", dataset="plain")
    assert Archive(tmp_path / "a.h5").records[0].ingest is None
