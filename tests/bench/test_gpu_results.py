"""Tables and plots of GPU results: from files alone, honest where a file is missing or a run was dry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import plots
from bench.gpu_results import devices
from bench.tables import blocks, gpu
from tests.bench import fabricated


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fabricated.everything(tmp_path / "results")


@pytest.mark.parametrize("name", gpu.GPU_TABLES)
def test_every_table_is_made_and_says_where_it_comes_from(folder: Path, name: str) -> None:
    text = gpu.device_tables(name, folder)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 2
    assert len({line.count("|") for line in lines}) == 1
    assert fabricated.DEVICE in text
    assert "bench/results/gpu-h100-" in text


@pytest.mark.parametrize("name", gpu.GPU_TABLES)
def test_what_was_not_measured_has_no_table(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        gpu.device_tables(name, tmp_path)
    path = fabricated.write(tmp_path, gpu.GPU_TABLES[name][0], {"measured": []}, slug="cpu", tiny=True)
    assert json.loads(path.read_text())["result"]["tiny"]
    with pytest.raises(FileNotFoundError):  # a dry run measured nothing
        gpu.device_tables(name, tmp_path)


def test_blocks_of_documents_read_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(blocks.TABLES, "gpu-loss", lambda: gpu.device_tables("gpu-loss", tmp_path))
    text = blocks.fill("<!-- table: gpu-loss -->\nold\n<!-- end table -->")
    assert "Not measured yet." in text


def test_marks_are_judged(folder: Path) -> None:
    rows = [
        [patch.strip() for patch in line.strip("|").split("|")]
        for line in gpu.device_tables("gpu-marks", folder).splitlines()
        if line.startswith("|")
    ][2:]
    verdicts = {row[0]: (row[2], row[3]) for row in rows}
    # 3.4 * 0.85 = 2.89 <= 3.0; doubled width: 5.78 > 5.5.
    assert verdicts["loss, 65,536 rows, width 64, each pair its own group"] == ("2.89 ms", "yes")
    assert verdicts["loss, 65,536 rows, width 128, each pair its own group"] == ("5.78 ms", "no")
    assert verdicts["loss, 65,536 rows, width 64, each pair its own group: the fastest peer"][1] == "yes"
    assert verdicts["sampling, 8 images, 64 templates: released loop / ours"] == ("250x", "yes")
    assert verdicts["whole step, images per second: ours / released, best batches"] == ("45.0x", "yes")


def test_marks_that_were_not_measured_say_so(folder: Path) -> None:
    for part in ("step", "sample-similar", "peers"):
        (folder / f"gpu-h100-{part}.json").unlink()
    rows = [
        line
        for line in gpu.device_tables("gpu-marks", folder).splitlines()
        if "sampling" in line or "step" in line
    ]
    assert len(rows) == 3
    assert all("| not measured |  |" in line for line in rows)


def test_a_peer_that_is_not_correct_has_no_figure(folder: Path) -> None:
    assert "Broken" not in gpu.device_tables("gpu-loss", folder)
    assert "not correct" in gpu.device_tables("gpu-peers", folder)


def let_fail(folder: Path, part: str) -> None:
    """Make a part's results those of a run in which everything failed."""
    path = folder / f"gpu-h100-{part}.json"
    content = json.loads(path.read_text())
    for entry in content["result"]["measured"]:
        for key in ("forward", "forward and backward", "median_ms", "ms_per_image"):
            entry.pop(key, None)
        entry["failed"] = "ValueError: broken"
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["gpu-loss", "gpu-loss-sizes", "gpu-sampling", "gpu-queue"])
def test_what_failed_altogether_says_why(folder: Path, name: str) -> None:
    let_fail(folder, gpu.GPU_TABLES[name][0])
    assert "ValueError: broken" in gpu.device_tables(name, folder)


def test_marks_of_what_failed_are_not_judged(folder: Path) -> None:
    let_fail(folder, "patch-nt-xent")
    lines = [line for line in gpu.device_tables("gpu-marks", folder).splitlines() if "| loss, " in line]
    ours = [line for line in lines if "peer" not in line]
    assert len(ours) == 7
    assert all("| not measured |  |" in line for line in ours)
    assert all(line.endswith("|  |") for line in lines)


def test_a_batch_that_was_the_last_in_time_is_not_called_the_largest(folder: Path) -> None:
    path = folder / "gpu-h100-step.json"
    assert "or more" not in gpu.device_tables("gpu-step", folder)
    content = json.loads(path.read_text())
    content["result"]["unfinished"] = ["ours"]
    path.write_text(json.dumps(content))
    (row,) = [line for line in gpu.device_tables("gpu-step", folder).splitlines() if "or more" in line]
    assert row.startswith("| ours |")


def test_two_devices_stand_apart(folder: Path) -> None:
    other = json.loads((folder / "gpu-h100-patch-nt-xent.json").read_text())
    other["result"]["circumstances"]["device"] = "NVIDIA H200"
    (folder / "gpu-h200-patch-nt-xent.json").write_text(json.dumps(other))
    assert [device.slug for device in devices(folder)] == ["h100", "h200"]
    text = gpu.device_tables("gpu-loss-sizes", folder)
    assert text.index(fabricated.DEVICE) < text.index("NVIDIA H200")


def test_plots(folder: Path) -> None:
    made = plots.draw(folder)
    assert [path.name for path in made] == [f"gpu-h100-{kind}.png" for kind in ("time", "memory", "roofline")]
    for path in made:
        with Image.open(path) as image:
            pixels = image.convert("L").resize((200, 100)).getcolors(256)
            assert image.width > 800
            assert pixels is not None
            assert len(pixels) > 10


def test_plots_without_peers_or_ceilings(tmp_path: Path) -> None:
    fabricated.everything(tmp_path)
    for part in ("peers", "ceilings", "sample-similar"):
        (tmp_path / f"gpu-h100-{part}.json").unlink()
    assert [path.name for path in plots.draw(tmp_path)] == ["gpu-h100-time.png", "gpu-h100-memory.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert plots.draw(tmp_path) == []
