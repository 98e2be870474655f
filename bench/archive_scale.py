"""How the costs of an archive grow with the number of small images.

    python -m bench.archive_scale --images 2000 20000 200000 --name cpu-archive-scale

Archives of synthetic 8-bit images of 64 x 64 pixels are written straight through the archive's writer; one in 1,000
is a rotated copy of the one before. Each measurement runs in a process of its own. An exponent is the slope of a cost over
the number of images between the two largest archives, both logarithmic: 1 is proportional.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.record import record
from pscl_hpc.archive import Archive, Collection, ShardWriter

ROOT = Path(__file__).resolve().parents[1]
COPY_EVERY = 1000
BATCH = 1000
READERS = 2
CROP, LARGE, LARGE_IMAGES = 128, 1024, 40
Pixels = npt.NDArray[Any]


def small_images(count: int, side: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Smooth random pictures with noise: 12 x 12 random values, interpolated."""
    grid = np.linspace(0, 11, side)
    weights = np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(12)[None, :]))
    noise = np.random.default_rng(1).normal(0, 6, (97, side, side)).astype(np.float32)
    for first in range(0, count, BATCH):
        random = np.random.default_rng(first)
        number = min(BATCH, count - first)
        fields = np.einsum(
            "ai,nij,bj->nab", weights, random.normal(0, 40, (number, 12, 12)), weights, optimize=True
        )
        fields += 128 + noise[random.integers(0, len(noise), number)]
        images = np.clip(fields, 0, 255).astype(np.uint8)
        if number > 1:  # one pair of copies
            images[1] = np.rot90(images[0])
        yield from images


def generate(path: Path, count: int, side: int) -> None:
    with ShardWriter(path, [Collection("small")]) as writer:
        for number, image in enumerate(small_images(count, side)):
            name = f"small/{number:07d}"
            writer.add(image, id=name, dataset="small", source=f"{name}.png", split="train")


def part_write(path: Path, count: int, side: int) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    generate(path, count, side)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = path.stat().st_size
    pixels = count * side * side
    return {"write_s": seconds, "write_cpu_s": cpu, "bytes_per_pixel": size / pixels, "write_MB": _peak_mb()}


def _data(path: Path, side: int) -> Any:
    from pscl_hpc.config import load_config
    from pscl_hpc.pretraining.config import PretrainConfig
    from pscl_hpc.pretraining.data import PretrainData

    config = load_config(
        ROOT / "configs/pretrain/simclr.yaml",
        [f"data.archive={path}", f"views.size=[{side},{side}]", "runtime.device=cpu"],
        kind="pretrain",
    )
    assert isinstance(config, PretrainConfig)
    start, cpu = time.perf_counter(), time.process_time()
    archive = Archive(path)
    opened = time.perf_counter() - start, time.process_time() - cpu
    return config, archive, PretrainData(archive, config), opened, (start, cpu)


def part_open(path: Path, count: int, side: int) -> dict[str, Any]:
    """Opening, and opening to the first batch, in this process; the file is in the page cache."""
    _touch(path)
    *_, data, opened, (start, cpu) = _data(path, side)
    data[0]
    return {
        "open_s": opened[0],
        "open_cpu_s": opened[1],
        "first_batch_s": time.perf_counter() - start - opened[0],
        "first_batch_cpu_s": time.process_time() - cpu - opened[1],
        "open_MB": _peak_mb(),
    }


def part_readers(path: Path, count: int, side: int) -> dict[str, Any]:
    """Memory that only one reading process has, after 64 batches; the largest of the readers."""
    from pscl_hpc.training.loader import read_ahead

    _touch(path)
    _, _, data, *_ = _data(path, side)
    start = time.perf_counter()
    batches = read_ahead(data, range(64), workers=READERS, pin=False)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(62):
        next(batches)
    found = [_private_mb(process) for process in _descendants(os.getpid())]
    return {"reader_private_MB": max(found), "readers_first_batch_s": first}


def _descendants(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [process]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _private_mb(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def part_add(path: Path, count: int, side: int) -> dict[str, Any]:
    """Adding ten images to a copy of the archive."""
    from pscl_hpc.archive.build import BuildOptions, build
    from pscl_hpc.archive.ingest.sources import plan

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        grown = Path(scratch) / "grown.h5"
        shutil.copyfile(path, grown)
        os.sync()
        folder = Path(scratch) / "more"
        folder.mkdir()
        for number, image in enumerate(small_images(10, side)):
            Image.fromarray(image.T).save(folder / f"{number:02d}.png")
        found = plan([folder])
        before, start, cpu = _written(), time.perf_counter(), time.process_time()
        build(found, grown, BuildOptions())
        return {
            "add_s": time.perf_counter() - start,
            "add_cpu_s": time.process_time() - cpu,
            "add_written_MB": (_written() - before) / 1e6,
        }


def part_check(path: Path, count: int, side: int) -> dict[str, Any]:
    from pscl_hpc.archive.check import check

    _touch(path)
    archive = Archive(path)
    start, cpu = time.perf_counter(), time.process_time()
    findings = check(archive)
    pairs = {frozenset(finding.images) for finding in findings}
    placed = [
        frozenset((f"small/{first:07d}", f"small/{first + 1:07d}"))
        for first in range(0, count - 1, COPY_EVERY)
    ]
    return {
        "check_s": time.perf_counter() - start,
        "check_cpu_s": time.process_time() - cpu,
        "check_peak_MB": _peak_mb(),
        "copies_placed": len(placed),
        "copies_found": sum(pair in pairs for pair in placed),
        "findings": len(findings),
    }


def part_noise(path: Path, count: int, side: int) -> dict[str, Any]:
    """Findings among 300 images of noise under the same shading of illumination."""
    from pscl_hpc.archive.check import check

    random = np.random.default_rng(0)
    shade = 128 + 30 * np.linspace(-1, 1, 256)[None, :] * np.ones((256, 1))
    with ShardWriter(path, [Collection("small")]) as writer:
        for number in range(300):
            image = np.clip(shade + random.normal(0, 8, (256, 256)), 0, 255).astype(np.uint8)
            writer.add(image, id=f"small/{number:04d}", dataset="small")
    findings = check(Archive(path))
    text = "\n".join(map(str, findings))
    return {"noise_findings": len(findings), "noise_text_bytes": len(text)}


def part_crops(path: Path, count: int, side: int) -> dict[str, Any]:
    """128 px crops of 1,024 px images per second of processor time, each converted to float32 in 0..1."""
    folder = path.parent / "crops"
    folder.mkdir()
    random = np.random.default_rng(0)
    tile = np.stack(list(small_images(LARGE_IMAGES + 2, LARGE // 8))[2:])
    large = np.tile(tile, (1, 8, 8)) + random.integers(0, 8, (LARGE_IMAGES, LARGE, LARGE), np.uint8)
    for codec in ("none", "gzip", "zstd"):
        with ShardWriter(folder / f"{codec}.h5", [Collection("large")], codec) as writer:
            for number, image in enumerate(large):
                writer.add(image, id=f"large/{number:04d}", dataset="large")
    large.tofile(folder / "flat.bin")
    with h5py.File(folder / "h5py.h5", "w") as file:
        chunks = (1, 256, 256)
        file.create_dataset("none", data=large, chunks=chunks)
        file.create_dataset("gzip", data=large, chunks=chunks, compression="gzip")
    for number, image in enumerate(large):
        Image.fromarray(image).save(folder / f"{number}.png")
    memmap = np.memmap(folder / "flat.bin", np.uint8, "r", shape=large.shape)
    file = h5py.File(folder / "h5py.h5")
    ours = {codec: Archive(folder / f"{codec}.h5") for codec in ("none", "gzip", "zstd")}

    def cut(images: Any) -> Any:
        return lambda i, y, x: images[i, y : y + CROP, x : x + CROP].astype(np.float32) * np.float32(1 / 255)

    def png(i: int, y: int, x: int) -> Pixels:
        image = np.asarray(Image.open(folder / f"{i}.png"))
        return image[y : y + CROP, x : x + CROP].astype(np.float32) * np.float32(1 / 255)

    readers = {
        "memmap": cut(memmap),
        "archive none": lambda i, y, x: ours["none"].read_unit(i, (y, x, CROP, CROP)),
        "h5py none": cut(file["none"]),
        "archive gzip": lambda i, y, x: ours["gzip"].read_unit(i, (y, x, CROP, CROP)),
        "archive zstd": lambda i, y, x: ours["zstd"].read_unit(i, (y, x, CROP, CROP)),
        "h5py gzip": cut(file["gzip"]),
        "PNG": png,
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(5):  # readers take turns, so that load on the machine meets all of them
        for name, read in readers.items():
            number, start = 0, time.process_time()
            while time.process_time() - start < 0.4:
                for _crop in range(10):
                    y, x = random.integers(0, LARGE - CROP, 2)
                    read(int(random.integers(LARGE_IMAGES)), int(y), int(x))
                number += 10
            rates[name].append(number / (time.process_time() - start))
    found = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "crops_per_cpu_s": {name: round(value) for name, value in found.items()},
        "none_over_memmap": found["archive none"] / found["memmap"],
        "gzip_over_h5py_gzip": found["archive gzip"] / found["h5py gzip"],
        "zstd_over_h5py_gzip": found["archive zstd"] / found["h5py gzip"],
    }


def part_study(path: Path, count: int, side: int) -> dict[str, Any]:
    """``study --dry-run`` of 60 places on a synthetic archive, with the start of the program.

    The second of two calls: the first compiles the modules of a checkout, which those of an installation are already.
    """
    from pscl_hpc.archive.synthesis import write_synthetic_archive

    archive, config = path.parent / "study.h5", path.parent / "study.yaml"
    write_synthetic_archive(archive, 24, 1, (128, 128), families=("precipitates",))
    config.write_text(
        "kind: study\nname: places\n"
        f"finetune: {{extends: {ROOT}/configs/finetune/default.yaml}}\n"
        "datasets: [{name: synthetic_precipitates, references: {count: 4}}]\n"
        "budgets: [1]\nseeds: [0, 1, 2, 3, 4]\nmethods:\n"
        "  - {name: none, pretrain: none}\n"
        "  - {name: plain, pretrain: none, finetune: {semi_supervised: null}}\n"
        f"  - {{name: simclr, pretrain: {ROOT}/configs/pretrain/simclr.yaml}}\n"
    )
    command = [sys.executable, "-m", "pscl_hpc.cli", "study", str(config), f"archive={archive}", "--dry-run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(path.parent / "pycache")
    for _ in range(2):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"dry_run_s": seconds, "dry_run_cpu_s": cpu, "dry_run_text": done.stdout.splitlines()[-1:]}


BY_SIZE = ("write", "open", "readers", "add", "check")
ONCE = ("noise", "crops", "study")
COSTS = (
    "write_cpu_s",
    "open_s",
    "open_cpu_s",
    "first_batch_s",
    "reader_private_MB",
    "add_s",
    "add_written_MB",
)
COSTS += ("check_cpu_s", "check_peak_MB")


def measure(part: str, path: Path, count: int, side: int) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, "-m", "bench.archive_scale", "--part", part, "--archive", str(path)]
    command += ["--images", str(count), "--side", str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} of {count} images failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{count:>8} {part}: {found}", flush=True)
    return found


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    if len(rows) < 2:
        return {}
    small, large = rows[-2:]
    ratio = math.log(large["images"] / small["images"])
    known = [name for name in COSTS if small.get(name, 0) > 0 and large.get(name, 0) > 0]
    return {name: round(math.log(large[name] / small[name]) / ratio, 2) for name in known}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _written() -> int:
    """Bytes that this process caused to be sent to the storage."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["write_bytes"])


def _touch(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="*", default=[2000, 20000])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--name", default="cpu-archive-scale")
    parser.add_argument("--folder", type=Path, help="where archives are made; by default a temporary folder")
    parser.add_argument(
        "--only", nargs="+", choices=(*BY_SIZE, *ONCE), help="parts to measure; by default all"
    )
    parser.add_argument("--part", choices=(*BY_SIZE, *ONCE), help=argparse.SUPPRESS)
    parser.add_argument("--archive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part = globals()[f"part_{arguments.part}"]
        print(json.dumps(part(arguments.archive, arguments.images[0], arguments.side)))
        return
    parts = arguments.only or (*BY_SIZE, *ONCE)
    options = [f"--images {' '.join(map(str, sorted(arguments.images)))}".strip(), f"--side {arguments.side}"]
    if arguments.only:
        options.append(f"--only {' '.join(arguments.only)}")
    command = f"python -m bench.archive_scale {' '.join(options)}"
    rows: list[dict[str, Any]] = []
    once: dict[str, Any] = {}
    result = {"side": arguments.side, "sizes": rows, "exponents": {}, "once": once}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for part in ONCE:
            if part in parts:
                once |= measure(part, Path(scratch) / f"{part}.h5", 0, arguments.side)
        if once:
            record(arguments.name, result, command=command)
        for count in sorted(arguments.images):
            path = Path(scratch) / f"{count}.h5"
            rows.append({"images": count})
            for part in BY_SIZE:
                if part == "write" or part in parts:
                    rows[-1] |= measure(part, path, count, arguments.side)
                    result["exponents"] = exponents(rows)
                    # After each part, so that little is lost when the next one takes too long.
                    record(arguments.name, result, command=command)
            path.unlink()


if __name__ == "__main__":
    main()
