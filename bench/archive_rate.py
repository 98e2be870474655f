"""Random 224 px crops per second from an archive of real micrographs, by compression.

python bench/archive_rate.py --data FOLDER...

Each FOLDER is a dataset folder of annotated grey 8-bit micrographs with its classes in splits.json. The 16-bit and
float images are made from them, with 12 bits of which the lower 4 are noise, like those of a detector. Rates are per
second of processor time of one process, so that other load on the machine has little effect.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bench.record import record
from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.codecs import CODECS
from pscl_hpc.archive.format import MASK_POOL, TILE
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.masks import read_mask
from pscl_hpc.archive.ingest.page import single_channel
from pscl_hpc.archive.ingest.sources import plan

CROP = 224
REPEATS = 3
Pixels = npt.NDArray[Any]
Micrograph = tuple[Pixels, Pixels, Collection]
ReadCrop = Callable[[int, tuple[int, int, int, int]], Pixels]


def load(folders: list[Path]) -> list[Micrograph]:
    """Annotated grey micrographs at least as large as a crop, with masks and class lists."""
    found = plan(folders)
    loaded = []
    for item in found.items:
        if item.mask is None:
            continue
        with open_pages(item.path) as pages:
            page = single_channel(pages[0], luma=True)
            image = np.concatenate(list(page.strips()))
        if min(image.shape[:2]) >= CROP:
            collection = found.collections[item.dataset]
            height, width = image.shape[:2]
            mask = read_mask(item.mask, collection, height, width, height)
            loaded.append((image, mask, collection))
    return loaded


def as_dtype(image: Pixels, dtype: str) -> Pixels:
    if dtype == "uint8":
        return image
    noise = np.random.default_rng(0).integers(0, 16, image.shape, np.uint16)
    deep = (image.astype(np.uint16) << 4) + noise
    real: Pixels = deep.astype(np.float32) / np.float32(4095)
    return deep if dtype == "uint16" else real


def write(path: Path, micrographs: list[Micrograph], dtype: str, codec: str) -> float:
    """Write one archive; MB of pixels per second of processor time."""
    collections = {
        collection.name: Collection(collection.name, collection.classes) for *_, collection in micrographs
    }
    images = [as_dtype(image, dtype) for image, *_ in micrographs]
    start = time.process_time()
    with ShardWriter(path, list(collections.values()), codec) as writer:
        for number, (image, (_, mask, collection)) in enumerate(zip(images, micrographs, strict=True)):
            writer.add(image, id=f"{collection.name}/{number:06d}", dataset=collection.name, mask=mask)
    return sum(image.nbytes for image in images) / 1e6 / (time.process_time() - start)


def rate(archive: Archive, read: ReadCrop, seconds: float) -> float:
    """Median over repeats of crops per second of processor time, with the file in the page cache."""
    rates = []
    for repeat in range(REPEATS):
        random = np.random.default_rng(repeat)
        count, start = 0, time.process_time()
        while time.process_time() - start < seconds:
            for _ in range(20):
                record = archive.records[int(random.integers(len(archive)))]
                top = int(random.integers(record.height - CROP + 1))
                left = int(random.integers(record.width - CROP + 1))
                read(record.index, (top, left, CROP, CROP))
                count += 1
        rates.append(count / (time.process_time() - start))
    return statistics.median(rates)


def through_h5py(archive: Archive, file: h5py.File) -> ReadCrop:
    """Reads the same crops from the same file with h5py slices, for comparison."""
    rows = list(archive.all_rows())

    def read(index: int, window: tuple[int, int, int, int]) -> Pixels:
        row = rows[index]
        values = file[f"tiles/{row.pool}/{row.block}"]
        top, left, height, width = window
        out = np.empty((height, width), values.dtype)
        side = TILE if values.ndim == 1 else values.shape[1]
        across = -(-row.width // side)
        for y in range(top // side * side, top + height, side):
            y0, y1 = max(top, y), min(top + height, y + side)
            for x in range(left // side * side, left + width, side):
                x0, x1 = max(left, x), min(left + width, x + side)
                if values.ndim == 1:  # tiles at the edges are smaller
                    tall, wide = min(side, row.height - y), min(side, row.width - x)
                    start = row.start + y * row.width + tall * x
                    band = values[start + (y0 - y) * wide : start + (y1 - y) * wide]
                    part = band.reshape(y1 - y0, wide)[:, x0 - x : x1 - x]
                else:
                    tile = row.start + y // side * across + x // side
                    part = values[tile, y0 - y : y1 - y, x0 - x : x1 - x]
                out[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return out

    return read


def measure(
    path: Path, micrographs: list[Micrograph], dtype: str, codec: str, seconds: float
) -> dict[str, Any]:
    written = write(path, micrographs, dtype, codec)
    archive = Archive(path)
    (record,) = {record.dtype for record in archive.records}
    pools = archive.shards[0].pools
    raw = sum(row.height * row.width for row in archive.rows)
    line: dict[str, Any] = {
        "dtype": record,
        "compression": codec,
        "crops_per_second": round(rate(archive, archive.read_image, seconds)),
        "stored_per_raw": round(pools[f"{dtype}x1"].stored_bytes / raw / np.dtype(dtype).itemsize, 3),
        "write_MB_per_second": round(written),
    }
    if dtype == "uint8":
        line["mask_crops_per_second"] = round(rate(archive, archive.read_mask, seconds))
        line["mask_stored_per_raw"] = round(pools[MASK_POOL].stored_bytes / raw, 3)
    if codec in ("none", "gzip", "lzf"):  # what h5py decodes without plugins
        with h5py.File(path, "r", locking=False) as file:
            line["crops_per_second_h5py"] = round(rate(archive, through_h5py(archive, file), seconds))
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--seconds", type=float, default=1.0, help="per repeat; the median of three is kept")
    arguments = parser.parse_args()
    micrographs = load(arguments.data)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("uint8", "uint16", "float32"):
            for codec in CODECS:
                line = measure(Path(folder) / "a.h5", micrographs, dtype, codec, arguments.seconds)
                lines.append(line)
                print(line, flush=True)
    names = " ".join(sorted({collection.name for *_, collection in micrographs}))
    result = {
        "images": len(micrographs),
        "sizes": sorted({f"{image.shape[0]} x {image.shape[1]}" for image, *_ in micrographs}),
        "datasets": names,
        "crop": CROP,
        "rows": lines,
    }
    print(record("cpu-archive-rate", result, command=f"python bench/archive_rate.py --data {names}"))


if __name__ == "__main__":
    main()
