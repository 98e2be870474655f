"""Small real archives and image files for the archive tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.blocks import Pool
from pscl_hpc.archive.build import BuildOptions, BuildResult, build
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.page import single_channel
from pscl_hpc.archive.ingest.sources import Plan, plan
from tests.helpers import PATIENCE_S

Pixels = npt.NDArray[Any]

STEEL = Collection("steel", ("matrix", "carbide", "pore"), 0, (2,), ("steel/a",))
PLAIN = Collection("plain")


def pixels(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Pixels:
    """Noise over the whole range of an integer type, about 0 for float."""
    random = np.random.default_rng(seed)
    if dtype == "float32":
        return random.normal(0, 3, shape).astype(np.float32)
    return random.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def texture(size: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """A smooth random uint8 picture, (h, w): it looks the same after rescaling."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    field = np.zeros(size)
    for _ in range(12):
        u, v, phase = random.uniform(-9, 9), random.uniform(-9, 9), random.uniform(0, 7)
        field += np.sin(u * rows / size[0] + v * columns / size[1] + phase)
    return np.clip(128 + 25 * field + random.normal(0, 4, size), 0, 255).astype(np.uint8)


def labels(size: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Class indices 0..2 with some pixels not annotated, (h, w)."""
    random = np.random.default_rng(seed)
    return np.array([0, 1, 2, 255], np.uint8)[random.integers(0, 4, size)]


def write_mixed(path: Path, compression: str = "auto") -> dict[str, tuple[Pixels, Pixels | None]]:
    """An archive of every stored type in odd sizes; returns id -> (image (h, w, c), mask)."""
    content: dict[str, tuple[Pixels, Pixels | None]] = {}
    sizes = [(1, 1), (255, 256), (257, 300), (40, 700), (513, 2)]
    with ShardWriter(path, [STEEL, PLAIN], compression) as writer:
        for number, size in enumerate(sizes):
            for dtype in ("uint8", "uint16", "float32"):
                for channels in (1, 3):
                    image = pixels((*size, channels), dtype, seed=number)
                    image[: size[0] // 2] = image[0, 0]  # half of it compresses
                    mask = labels(size, number) if number % 2 else None
                    name = f"{'steel' if number % 2 else 'plain'}/{number}-{dtype}-{channels}"
                    writer.add(image, id=name, dataset=name.partition("/")[0], mask=mask)
                    content[name] = (image, mask)
    return content


def make_sources(folder: Path, images: int = 12, first: int = 0) -> Path:
    """A dataset folder ``steel`` of grey images, every second one annotated."""
    for number in range(first, first + images):
        for name, image in (("img", pixels((40, 300), seed=number)), ("gt", labels((40, 300), number))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if name == "img" or number % 2:
                Image.fromarray(image).save(folder / name / f"{number:04d}.png")
    (folder / "splits.json").write_text(json.dumps({"classes": ["a", "b", "c"], "references": ["0001.png"]}))
    return folder


def packed(sources: Path, out: Path, **options: object) -> BuildResult:
    """Build or extend the archive ``out`` from one source with default options."""
    return build(plan([sources]), out, BuildOptions(), **options)  # type: ignore[arg-type]


def picture(path: Path, image: np.ndarray | None = None) -> Path:
    """Write an image file and its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels((6, 8)) if image is None else image).save(path)
    return path


def write_splits(folder: Path, **changed: Any) -> None:
    """The ``splits.json`` of a dataset folder of the images a to d, with ``changed`` keys."""
    content = {
        "classes": ["matrix", "carbide", "pore"],
        "background": 0,
        "ignore_classes": [2],
        "train": ["a.png", "d.png"],
        "val": ["b.png"],
        "test_ood": ["c.png"],
        "references": ["a.png"],
        "note": "free text",
        "folds": {"0": ["a.png"]},
    } | changed
    (folder / "splits.json").write_text(json.dumps(content))


def write_csv(path: Path, *lines: str) -> Path:
    """Write a CSV file with these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(found: Plan) -> dict[str, tuple[str, bool]]:
    """Image id -> (split, whether it has a mask)."""
    return {item.id: (item.split, item.mask is not None) for item in found.items}


def pool_of(archive: Archive, index: int) -> Pool:
    """The tiles of the pool of an image, in an archive of one file."""
    return archive.shards[0].pools[archive.rows[index].pool]


def decode(path: Path, *, luma: bool = False) -> Pixels:
    """All pixels of a file with one page."""
    with open_pages(path) as pages:
        assert len(pages) == 1
        page = single_channel(pages[0], luma=luma)
        image = np.concatenate(list(page.strips()))
        assert image.shape == (page.height, page.width, page.channels)
        assert image.dtype.name == page.dtype
        return image


def run_killed(script: Path, text: str, *arguments: str | Path) -> None:
    """Write a script that kills itself with signal 9, and run it."""
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def with_bar(image: np.ndarray, rows: int, *, ink: int, paper: int, frame: int = 0) -> np.ndarray:
    """``image`` with a bar of text in place of its lowest ``rows`` rows, as a microscope draws it."""
    height, width = image.shape
    bar = Image.new("L", (width, rows), paper)
    draw = ImageDraw.Draw(bar)
    font = ImageFont.load_default(max(8, rows // 2))
    draw.text((6, rows // 5), "EHT = 15.00 kV   WD = 8.5 mm   Mag = 5.00 K X", ink, font)
    draw.line((width * 3 // 4, rows * 3 // 4, width - 12, rows * 3 // 4), ink, 2)
    if frame:
        draw.rectangle((0, 0, width - 1, frame - 1), ink)
    out = image.copy()
    out[height - rows :] = np.asarray(bar)
    return out
