"""Decoding: no depth is lost, and damaged files are detected."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.options import ALL_PAGES

from .archives import decode, pixels


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(31, 45), (31, 45, 3), (300, 9)])
def test_integers_come_back_exactly(tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
    image = pixels(shape, dtype)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(imagecodecs.png_encode(image)) if suffix == "png" else tifffile.imwrite(path, image)
    np.testing.assert_array_equal(decode(path), image.reshape(*shape[:2], -1))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float32", "float32"),
        ("float64", "float32"),
        ("float16", "float32"),
        ("int16", "float32"),
        ("int8", "float32"),
    ],
)
def test_signed_and_float_tiff_become_float32(tmp_path: Path, dtype: str, stored: str) -> None:
    image = (np.random.default_rng(0).normal(0, 50, (20, 30))).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image)
    read = decode(tmp_path / "a.tif")
    assert read.dtype == stored
    np.testing.assert_array_equal(read[:, :, 0], image.astype(np.float32))


def test_32_bit_integers_are_refused_not_rounded(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.arange(100, dtype=np.uint32).reshape(10, 10))
    with pytest.raises(Unreadable, match="uint32"):
        decode(tmp_path / "a.tif")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tiff_layouts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float32"]))
    channels = data.draw(st.sampled_from([1, 3]))
    options: dict[str, Any] = {
        "compression": data.draw(st.sampled_from([None, "zlib", "lzw", "zstd", "packbits"]))
    }
    if options["compression"] in ("zlib", "lzw") and data.draw(st.booleans()):
        options["predictor"] = True
    layout = data.draw(st.sampled_from(["tile", "strip", "whole"]))
    if layout == "tile":
        options["tile"] = (data.draw(st.sampled_from([16, 64, 272])), data.draw(st.sampled_from([16, 128])))
    elif layout == "strip":
        options["rowsperstrip"] = data.draw(st.integers(1, height))
    if channels == 3:
        options |= {"photometric": "rgb", "planarconfig": data.draw(st.sampled_from(["contig", "separate"]))}
    options["bigtiff"] = data.draw(st.booleans())
    options["byteorder"] = data.draw(st.sampled_from("<>"))
    image = pixels((height, width, channels), dtype)
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    stored = image[:, :, 0] if channels == 1 else image
    if options.get("planarconfig") == "separate":
        stored = np.moveaxis(stored, 2, 0)
    tifffile.imwrite(path, stored, **options)
    np.testing.assert_array_equal(decode(path), image)


def test_one_plain_strip_is_read_by_rows(tmp_path: Path) -> None:
    """As ImageJ writes mosaics; the whole strip must not be in memory."""
    image = pixels((2000, 1500), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=2000, byteorder=">")
    with open_pages(tmp_path / "a.tif") as (page,):
        tracemalloc.start()
        top = 0
        for strip in page.strips():
            np.testing.assert_array_equal(strip[:, :, 0], image[top : top + 256])
            top += len(strip)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert top == 2000
    assert peak < image.nbytes
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "short.tif").write_bytes(data[:-1000])
    with pytest.raises(Unreadable), open_pages(tmp_path / "short.tif") as (page,):
        list(page.strips())


def test_tiff_pages_and_reduced_copies(tmp_path: Path) -> None:
    pages = [pixels((20, 30), seed=1), pixels((25, 10), "uint16", seed=2)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pages[0])
        writer.write(pages[0][::2, ::2], subfiletype=1)
        writer.write(pages[1])
    for number, truth in zip((0, 2), pages, strict=True):
        with open_pages(tmp_path / "a.tif", number) as (page,):
            np.testing.assert_array_equal(page.rows(0, page.height)[:, :, 0], truth)
    for number, named in ((ALL_PAGES, "20 x 30.*25 x 10.*--page 0"), (1, "no page 1.*0, 2")):
        with pytest.raises(Unreadable, match=named), open_pages(tmp_path / "a.tif", number):
            pass


def test_tiff_white_is_zero_palette_and_bilevel(tmp_path: Path) -> None:
    image = pixels((9, 17))
    tifffile.imwrite(tmp_path / "white.tif", image, photometric="miniswhite")
    np.testing.assert_array_equal(decode(tmp_path / "white.tif")[:, :, 0], 255 - image)
    ramp = np.stack([np.arange(256)[::-1] * 257] * 3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", image, photometric="palette", colormap=ramp)
    np.testing.assert_array_equal(decode(tmp_path / "palette.tif")[:, :, 0], 255 - image)
    tifffile.imwrite(tmp_path / "bits.tif", image > 99, photometric="minisblack")
    np.testing.assert_array_equal(decode(tmp_path / "bits.tif")[:, :, 0], np.where(image > 99, 255, 0))


def test_12_bit_tiff_keeps_values_and_range(tmp_path: Path) -> None:
    image = pixels((16, 16), "uint16") >> 4
    packed = imagecodecs.packints_encode(image, 12)
    tags = [
        (256, 16),
        (257, 16),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 138),
        (277, 1),
        (278, 16),
        (279, len(packed)),
    ]
    body = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + bytes(4)
    (tmp_path / "a.tif").write_bytes(header.ljust(138, b"\0") + packed)
    with open_pages(tmp_path / "a.tif") as (page,):
        np.testing.assert_array_equal(page.rows(0, 16)[:, :, 0], image)
        assert page.intensity == (0.0, 4095.0)


def test_a_huge_tiled_tiff_is_read_by_bands(tmp_path: Path) -> None:
    """The page never decodes more than one row of its tiles for 256 rows of the image."""
    image = pixels((3000, 700), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(128, 128), compression="zlib")
    with open_pages(tmp_path / "a.tif") as (page,):
        decoded = []
        original = page._decode_band
        page._decode_band = lambda number: decoded.append(number) or original(number)
        strips = page.strips()
        np.testing.assert_array_equal(next(strips)[:, :, 0], image[:256])
        assert decoded == [0, 1]
        np.testing.assert_array_equal(np.concatenate(list(strips))[:, :, 0], image[256:])
        assert decoded == list(range(24))


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    grey = pixels((20, 30))
    source = (
        Image.fromarray(pixels((20, 30), "uint16")) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    )
    (tmp_path / "a.png").write_bytes(_png(source))
    truth = np.asarray(source.convert("L") if mode in ("1", "LA", "P", "RGB", "RGBA") else source)
    read = decode(tmp_path / "a.png")  # equal channels are stored once, alpha is dropped
    np.testing.assert_array_equal(read[:, :, 0], truth)
    assert read.shape == (20, 30, 1)


def test_true_colour_is_kept_or_made_luma(tmp_path: Path) -> None:
    image = pixels((20, 30, 3))
    image[:, :, 1:] = image[:, :, :1]
    image[19, 29] = (250, 10, 20)  # one coloured pixel in the last corner
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), image)
    read = decode(tmp_path / "a.png", luma=True)
    assert read.shape == (20, 30, 1)
    assert read[19, 29, 0] == round(0.299 * 250 + 0.587 * 10 + 0.114 * 20)
    np.testing.assert_array_equal(read[0, :, 0], image[0, :, 0])


@pytest.mark.parametrize("form", ["JPEG", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_and_bmp(tmp_path: Path, form: str, mode: str) -> None:
    source = Image.fromarray(pixels((20, 30, 3))).convert(mode)
    path = tmp_path / f"wrongly-named.{'png' if form == 'BMP' else 'tif'}"
    source.save(path, form)
    truth = np.asarray(Image.open(path)).reshape(20, 30, -1)
    np.testing.assert_array_equal(decode(path), truth)


def _whole(kind: str) -> bytes:
    image = pixels((64, 64, 3))
    if kind == "tif":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, tile=(16, 16), compression="zlib", photometric="rgb")
        return buffer.getvalue()
    if kind == "png":
        return bytes(imagecodecs.png_encode(image))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, {"jpg": "JPEG", "bmp": "BMP"}[kind])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95])
def test_a_torn_file_is_never_packed_short(tmp_path: Path, kind: str, share: float) -> None:
    data = _whole(kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Unreadable):
        decode(path)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_torn_stack_is_never_packed_with_fewer_pages(tmp_path: Path, share: float, bigtiff: bool) -> None:
    """Also if the file ends after a complete page."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for seed in range(6):
            writer.write(pixels((32, 32), seed=seed), contiguous=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Unreadable, match=r"list of pages|damaged"), open_pages(path) as pages:
        [list(page.strips()) for page in pages]


def test_a_stack_that_lists_one_page_is_refused(tmp_path: Path) -> None:
    """As ImageJ writes stacks above 4 GB: one directory, then the pixels of all pages."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels((5, 24, 32)), imagej=True, byteorder="<")
    with open_pages(path) as pages:
        assert len(pages) == 5
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack("<I", data[4:8])
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    data[end : end + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(Unreadable, match="5 x 24 x 32"), open_pages(path):
        pass


@pytest.mark.parametrize("orientation", range(9))
def test_a_jpeg_is_upright_as_viewers_show_it(tmp_path: Path, orientation: int) -> None:
    image = np.zeros((16, 24), np.uint8)
    image[:8, :8], image[8:, :8] = 100, 200
    turned = {  # EXIF: which sides of the picture the first row and the first column of the file are
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.T,
        6: np.rot90(image),
        7: image[::-1, ::-1].T,
        8: np.rot90(image, 3),
    }.get(orientation, image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg")[:, :, 0].astype(int), image, atol=2)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_flipped_bits_are_noticed(tmp_path: Path, kind: str) -> None:
    data = bytearray(_whole(kind))
    data[len(data) // 2] ^= 0x55
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Unreadable, match="damaged"):
        decode(tmp_path / "a")


def test_other_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 10**6, 10**6) + b"\x08\0\0\0\0" + bytes(4)
    )
    cmyk = Image.fromarray(pixels((4, 4, 3))).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.jpg")
    tifffile.imwrite(
        tmp_path / "five.tif", pixels((4, 4, 5)), photometric="minisblack", planarconfig="contig"
    )
    tifffile.imwrite(tmp_path / "ycc.tif", pixels((4, 4, 3)), photometric="ycbcr")
    for name, reason in (
        ("ycc.tif", "YCbCr"),
        ("empty.png", "empty"),
        ("text.png", "PNG, JPEG, BMP or TIFF"),
        ("bomb.png", "1000000 x 1000000"),
        ("cmyk.jpg", "CMYK"),
        ("five.tif", "5 channels"),
        ("gone.png", "cannot be opened"),
    ):
        with pytest.raises(Unreadable, match=reason):
            decode(tmp_path / name)


def test_scales_from_microscope_tags(tmp_path: Path) -> None:
    image = pixels((8, 8))
    fei = "[Scan]\r\nPixelWidth=2.5e-09\r\nPixelHeight=2.5e-09\r\n"
    zeiss = "\r\n".join(
        ["", *["0"] * 3, "AP_MAG", "Mag =  5.00 K X", "AP_IMAGE_PIXEL_SIZE", "Image Pixel Size = 22.33 nm"]
    )
    cases: dict[str, tuple[dict[str, Any], tuple[float | None, float | None]]] = {
        "fei": ({"extratags": [(34682, 2, 0, fei, True)]}, (0.0025, None)),
        "zeiss": ({"extratags": [(34118, 2, 0, zeiss, True)]}, (0.02233, 5000.0)),
        "broken": ({"extratags": [(34682, 2, 0, "[Scan]\r\nPixelWidth=wide\r\n", True)]}, (None, None)),
        "imagej": ({"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "um"}}, (0.25, None)),
        "imagej-micro": (
            {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "\\u00B5m"}},
            (0.25, None),
        ),
        "imagej-microns": (
            {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "microns"}},
            (0.25, None),
        ),
        "screen": ({"resolution": (72.0, 72.0), "resolutionunit": "INCH"}, (None, None)),
    }
    for name, (options, truth) in cases.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, image, **options)
        with open_pages(path) as (page,):
            assert (page.um_per_pixel, page.magnification) == (
                pytest.approx(truth[0]) if truth[0] else None,
                pytest.approx(truth[1]) if truth[1] else None,
            ), name
