"""Tables and plots of GPU results: also if a file is missing or the run was dry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import plots
from bench.gpu_results import devices
from bench.tables import __main__ as tables
from bench.tables import gpu
from tests.bench import fabricated


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fabricated.everything(tmp_path / "results")


def rows_of(name: str, folder: Path) -> list[list[str]]:
    """The cells of a table, head included."""
    lines = [line for line in gpu.device_tables(name, folder).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


@pytest.mark.parametrize("name", gpu.GPU_TABLES)
def test_every_table_names_its_device_and_file(folder: Path, name: str) -> None:
    rows = rows_of(name, folder)
    assert len(rows) > 1
    assert len({len(row) for row in rows}) == 1
    text = gpu.device_tables(name, folder)
    assert fabricated.DEVICE in text
    assert f"bench/results/gpu-h100-{gpu.GPU_TABLES[name][0]}.json" in text


@pytest.mark.parametrize("name", gpu.GPU_TABLES)
def test_no_table_without_results_or_from_a_dry_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        gpu.device_tables(name, tmp_path)
    fabricated.write(tmp_path, gpu.GPU_TABLES[name][0], {"measured": []}, slug="cpu", dry=True)
    with pytest.raises(FileNotFoundError):
        gpu.device_tables(name, tmp_path)


def test_a_block_without_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(tables.TABLES, "gpu-loss", lambda: gpu.device_tables("gpu-loss", tmp_path))
    text = tables.fill("<!-- table: gpu-loss -->\nold\n<!-- end table -->")
    assert "Not measured yet." in text
    assert "old" not in text
    with pytest.raises(SystemExit, match="no-such-table"):
        tables.fill("<!-- table: no-such-table -->\n<!-- end table -->")


def test_targets(folder: Path) -> None:
    found = {row[0]: row[2:] for row in rows_of("gpu-targets", folder)}
    # 3.4 * 0.85 = 2.89 <= 3.0; twice the width: 5.78 > 5.5.
    assert found["loss, 65,536 rows, width 64, each pair its own group"] == ["2.89 ms", "yes"]
    assert found["loss, 65,536 rows, width 128, each pair its own group"] == ["5.78 ms", "no"]
    assert found["loss, 65,536 rows, width 64, each pair its own group: the fastest peer"] == [
        "30.00 ms",
        "yes",
    ]
    assert found["sampling, 256 images, 35,344 patches and more: share of floor"] == ["62%", "yes"]
    assert found["sampling, 8 images, 64 templates: released loop / ours"] == ["250x", "yes"]
    assert found["whole step, images per second: ours / released, best batches"] == ["45.0x", "yes"]


def test_targets_that_were_not_measured(folder: Path) -> None:
    for part in ("step", "sample-similar", "peers"):
        (folder / f"gpu-h100-{part}.json").unlink()
    found = [row for row in rows_of("gpu-targets", folder) if "sampling" in row[0] or "step" in row[0]]
    assert [row[2:] for row in found] == [["not measured", ""]] * 3


def test_a_peer_that_is_not_correct_has_no_figure(folder: Path) -> None:
    assert "Broken" not in gpu.device_tables("gpu-loss", folder)
    assert [row[3] for row in rows_of("gpu-peers", folder) if row[0] == "Broken"] == [
        "not correct at 1,048,576 x 256"
    ]


@pytest.mark.parametrize("name", ["gpu-loss", "gpu-loss-sizes", "gpu-sampling", "gpu-queue"])
def test_failures_are_shown_and_not_judged(folder: Path, name: str) -> None:
    path = folder / f"gpu-h100-{gpu.GPU_TABLES[name][0]}.json"
    content = json.loads(path.read_text())
    for entry in content["result"]["measured"]:
        for key in ("forward", "forward and backward", "median_ms", "ms_per_image", "share_of_floor"):
            entry.pop(key, None)
        entry["failed"] = "ValueError: broken"
    path.write_text(json.dumps(content))
    assert "ValueError: broken" in gpu.device_tables(name, folder)
    if "patch-nt-xent" in path.name:
        ours = [r for r in rows_of("gpu-targets", folder) if r[0].startswith("loss") and "peer" not in r[0]]
        assert [row[2:] for row in ours] == [["not measured", ""]] * 7


def test_two_devices(folder: Path) -> None:
    other = json.loads((folder / "gpu-h100-patch-nt-xent.json").read_text())
    other["result"]["circumstances"]["device"] = "NVIDIA H200"
    (folder / "gpu-h200-patch-nt-xent.json").write_text(json.dumps(other))
    assert [device.slug for device in devices(folder)] == ["h100", "h200"]
    text = gpu.device_tables("gpu-loss-sizes", folder)
    assert text.index(fabricated.DEVICE) < text.index("NVIDIA H200")


def test_plots(folder: Path) -> None:
    (folder / "gpu-h100-peers.json").unlink()
    (path,) = plots.draw(folder)
    with Image.open(path) as image:
        assert image.width > 800
        assert len(image.convert("L").resize((200, 100)).getcolors(256) or []) > 10
    assert plots.draw(folder / "nothing") == []
