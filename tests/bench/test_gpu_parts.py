"""What the parts of `bench/gpu.sh` are made of: floors, growing files, the gate of correctness, peers in processes."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import check, floors, oracles, step
from bench.gpu import patch_nt_xent as patch_loss
from bench.gpu import pretrain as pretraining
from bench.gpu import queue_info_nce as queue_loss
from bench.gpu import sample_similar as sampling
from bench.gpu.peers import PEERS
from bench.gpu.peers import __main__ as peers_main
from bench.gpu.peers.__main__ import in_own_process, run
from bench.gpu.peers.base import bare_packages, unit_rows
from bench.gpu.results import KERNELS, Results, fingerprint
from bench.gpu.setting import Setting
from bench.gpu.shapes import TEMPERATURE, QueueShape, grouping, pairs
from bench.gpu.step import largest, summary
from pscl_kernels import patch_nt_xent, queue_info_nce

H100 = floors.Ceilings(3.0e12, 790e12, 3.7e12)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("PSCL_BENCH_RESULTS", str(tmp_path))
    return Setting(torch.device("cpu"), 60.0)


@pytest.mark.parametrize(
    ("width", "row", "symmetric"), [(64, 2.55, 1.97), (128, 4.18, 3.48), (256, 8.35, 6.96)]
)
def test_floors_of_the_loss(width: int, row: float, symmetric: float) -> None:
    found = floors.loss(65_536, width, 0, H100)
    assert found["forward and backward row"] == pytest.approx(row, abs=0.01)
    assert found["forward and backward symmetric"] == pytest.approx(symmetric, abs=0.01)
    quarter = floors.loss(65_536, width, 4, H100)
    assert all(quarter[key] == pytest.approx(0.75 * found[key]) for key in found)


def test_floors_of_queue_and_sampling() -> None:
    assert floors.queue(65_536, 65_536, 128, H100)["forward and backward"] == pytest.approx(2.78, abs=0.01)
    assert floors.sampling(256, 64, 35_344, 64, H100) == pytest.approx(0.39, abs=0.01)
    # Past 263 templates the products bind.
    assert floors.sampling(256, 480, 35_344, 64, H100) > 1.7 * floors.sampling(256, 240, 35_344, 64, H100)


def test_results_grow_and_go_on(setting: Setting, tmp_path: Path) -> None:
    first = Results("thing", setting, {"temperature": 0.1}, of_kernels=True)
    first.add({"rows": 4, "value": 1.0})
    again = Results("thing", setting, {"temperature": 0.1}, of_kernels=True)
    assert again.has(rows=4)
    assert not again.has(rows=5)
    path = tmp_path / "gpu-cpu-thing.json"
    content = json.loads(path.read_text())
    assert content["result"]["circumstances"]["kernels"] == fingerprint(KERNELS)
    content["result"]["circumstances"]["kernels"] = "of other sources"
    path.write_text(json.dumps(content))
    assert not Results("thing", setting, {}, of_kernels=True).entries


def test_results_of_two_archives_or_toolkits_do_not_mix(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "TOOLKIT", tmp_path)
    monkeypatch.setattr(step, "TOOLKIT", tmp_path)
    pretraining.opened(setting, "a.h5", 7, "0").add({"batch_size": 8})
    step.opened(setting).add({"form": "ours"})
    assert pretraining.opened(setting, "a.h5", 7, "0").entries
    assert step.opened(setting).entries
    assert not pretraining.opened(setting, "b.h5", 7, "0").entries
    assert not pretraining.opened(setting, "a.h5", 8, "0").entries
    assert not pretraining.opened(setting, "a.h5", 7, "1").entries
    (tmp_path / "losses.py").write_text("other = True\n")
    assert not pretraining.opened(setting, "a.h5", 7, "0").entries
    assert not step.opened(setting).entries


def test_what_failed_is_tried_again_but_for_memory(setting: Setting) -> None:
    first = Results("thing", setting, {}, of_kernels=True)
    first.add({"rows": 1, "forward": {"median_ms": 1.0}})
    first.add({"rows": 2, "forward": {"failed": "out of memory"}, "failed": "out of memory"})
    first.end()
    first.add({"rows": 3, "failed": "RuntimeError: launch"})
    first.add({"rows": 4, "forward": {"median_ms": 1.0}, "errors": {"failed": "ValueError: no"}})
    with pytest.raises(SystemExit, match=r"2 failed .* RuntimeError: launch; ValueError: no"):
        first.end()
    again = Results("thing", setting, {}, of_kernels=True)
    assert [entry["rows"] for entry in again.entries] == [1, 2]
    again.end()
    # A peer's failure is a finding.
    peers = Results("peers", setting, {}, of_kernels=False)
    peers.add({"peer": "wrong", "failed": "not correct"})
    assert Results("peers", setting, {}, of_kernels=False).entries


@pytest.mark.parametrize("part", [patch_loss, sampling, queue_loss])
def test_a_shape_that_fails_does_not_end_a_part(
    part: Any, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where inputs or times fail nor where errors do; and the part is not well."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(part, "parse", lambda _: setting)
    monkeypatch.setattr(part, "require", lambda *_: None)
    monkeypatch.setattr(Setting, "backends", ("chunked",))
    inputs = {patch_loss: "pairs", sampling: "patches_of", queue_loss: "queued"}[part]
    with monkeypatch.context() as context:
        context.setattr(part, inputs, fail)
        context.setattr(part, "LOSS_VARIANTS", ("chunked",), raising=False)
        with pytest.raises(SystemExit, match="failed and will be tried again: ValueError: broken"):
            part.main()
    (path,) = tmp_path.glob("gpu-cpu-*.json")
    failed = json.loads(path.read_text())["result"]["measured"]
    assert {entry["failed"] for entry in failed} == {"ValueError: broken"}
    with monkeypatch.context() as context:
        context.setattr(part, "LOSS_VARIANTS", ("chunked",), raising=False)
        context.setattr(oracles, "errors", fail)
        if part is sampling:
            part.main()
        else:
            with pytest.raises(SystemExit, match="ValueError: broken"):
                part.main()
    found = json.loads(path.read_text())["result"]["measured"]
    assert len(found) == len(failed)
    for entry in found:
        assert part is sampling or entry["errors"] == {"failed": "ValueError: broken"}
        assert entry.get("forward", entry)["median_ms"] > 0


@pytest.mark.parametrize("part", [patch_loss, queue_loss])
def test_rows_too_wide_for_the_device_are_left_out(
    part: Any, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "parse", lambda _: setting)
    monkeypatch.setattr(part, "require", lambda *_: None)
    monkeypatch.setattr("bench.gpu.shapes.available_backends", lambda _: ("reference", "chunked"))
    part.main()
    (path,) = tmp_path.glob("gpu-cpu-*.json")
    found = json.loads(path.read_text())["result"]["measured"]
    assert {entry["implementation"] for entry in found} == {"chunked"}


def test_nothing_is_measured_that_is_not_correct(setting: Setting) -> None:
    with pytest.raises(SystemExit, match="patch_nt_xent has not passed"):
        check.require(setting, "patch_nt_xent")
    results = Results("correctness", setting, {}, of_kernels=True)
    results.add({"operation": "patch_nt_xent", "passed": True, "summary": ""})
    results.add({"operation": "sample_similar", "passed": False, "summary": ""})
    check.require(setting, "patch_nt_xent")
    with pytest.raises(SystemExit, match="sample_similar has not passed"):
        check.require(setting, "patch_nt_xent", "sample_similar")


def test_a_failing_suite_is_not_a_pass(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    (tmp_path / "patch_nt_xent.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    assert check.run(["patch_nt_xent"], setting)["passed"] is False


@pytest.mark.parametrize("fits", [1, 8, 9, 57, 100, 300, 5000])
def test_largest_batch(fits: int) -> None:
    tried: list[int] = []

    def call(batch: int) -> bool:
        tried.append(batch)
        return batch <= fits

    found = largest(call, 8, 1024)
    if fits < 8:
        assert found == 0
        assert tried == [8]
    else:
        assert found <= fits
        assert found >= min(fits * 8 // 9, 1024)
        assert len(tried) < 16
    assert max(tried) <= 1024


@pytest.fixture
def as_if_on_a_gpu(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(Setting, "tiny", False)
    monkeypatch.setattr(Setting, "slug", lambda self: "gpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU")
    monkeypatch.setattr(step, "setup_device", lambda *_: None)
    monkeypatch.setattr(step, "require", lambda *_: None)
    return setting


def test_search_of_the_largest_batch_goes_on_where_its_time_ended(
    as_if_on_a_gpu: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []

    def measured(setting: Setting, form: str, batch: int, *, profiled: bool) -> dict[str, Any]:
        tried.append(batch)
        found = {"failed": "out of memory"} if batch > 100 else {"images_per_second": 1.0, "peak_bytes": 1}
        return {"form": form, "what": "step", "images": batch + 1, **found}

    monkeypatch.setattr(step, "measured", measured)
    allowed = [2, 3, 0, 100, 100]

    def in_own_process(setting: Setting, form: str, seconds: float, results: Results) -> int:
        until = len(tried) + allowed.pop(0)
        code = 0
        monkeypatch.setattr(Setting, "left", lambda self: float(until - len(tried)))
        try:
            step.child(setting, form)
        except SystemExit as end:
            code = int(str(end.code))
        monkeypatch.setattr(Setting, "left", lambda self: 60.0)
        for line in capsys.readouterr().out.splitlines():
            if line.startswith(step.LINE):
                results.add(json.loads(line))
        capsys.readouterr()
        return code

    monkeypatch.delenv("RELEASED", raising=False)
    monkeypatch.setattr(step, "parse", lambda _: as_if_on_a_gpu)
    monkeypatch.setattr(step, "FORMS", ("released", "ours"))
    monkeypatch.setattr(step, "in_own_process", in_own_process)
    for most in (16, 64, 64):
        with pytest.raises(SystemExit) as end:
            step.main()
        assert end.value.code == 4
        results = step.opened(as_if_on_a_gpu)
        assert summary(results.entries)["ours"]["largest_images"] == most + 1
    step.main()
    expected: list[int] = []
    largest(lambda batch: not expected.append(batch) and batch <= 100, 8, 1024)
    assert tried == expected
    step.main()
    assert tried == expected


def test_peer_that_ran_out_of_time_is_not_done(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Setting(setting.device, -1.0, only=PEERS[0].name)
    with pytest.raises(SystemExit) as end:
        run(PEERS[0].name, late)
    assert end.value.code == 4
    monkeypatch.setattr(peers_main, "parse", lambda _: setting)
    monkeypatch.setattr(Setting, "tiny", False)
    monkeypatch.setattr(
        peers_main.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 4)
    )
    with pytest.raises(SystemExit) as end:
        peers_main.main()
    assert end.value.code == 4
    assert not list(tmp_path.glob("*peers*"))


def test_summary_of_steps() -> None:
    def entry(form: str, images: int, rate: float) -> dict[str, Any]:
        return {"form": form, "images": images, "images_per_second": rate, "peak_bytes": images}

    entries = [entry("released", 9, 10.0), entry("released", 17, 8.0), entry("ours", 9, 50.0)]
    entries += [entry("ours", 513, 400.0), {"form": "ours", "images": 1025, "failed": "out of memory"}]
    found = summary(entries)
    assert found["ours"]["speedup_small"] == 5.0
    assert found["ours"]["speedup_best"] == 40.0
    assert found["ours"]["largest_images"] == 513
    assert "ours, bf16" not in found


def test_oracles_are_those_of_the_kernels(setting: Setting) -> None:
    q, k = (x.detach().double() for x in pairs(setting, 60, 8, torch.float32))
    for groups in (0, 4):
        ids = grouping(setting, 60, groups)
        torch.testing.assert_close(
            oracles.loss(q, k, ids, 0.1), patch_nt_xent(q, k, ids, temperature=0.1, backend="reference")
        )
    entries = unit_rows(q, k)
    torch.testing.assert_close(
        oracles.queue(q, k, entries, 0.1), queue_info_nce(q, k, entries, temperature=0.1, backend="reference")
    )


def test_error_of_soft_labels_is_not_that_of_rounded_weights(setting: Setting) -> None:
    """`chunked` computes bfloat16 rows in float32: nothing but weights of other values could be far off."""
    shape = QueueShape(24, 40, 16, torch.bfloat16)
    found = queue_loss.measured(setting, shape, "soft", "chunked", None)
    assert found["loss_error"] < 1e-6


def test_own_product_as_a_negative() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1)
    sums = [sum(math.exp(float(z[i] @ z[j]) / 0.2) for j in range(10)) for i in range(10)]
    expected = sum(math.log(sums[i]) - float(z[i] @ z[(i + 5) % 10]) / 0.2 for i in range(10)) / 10
    assert float(oracles.loss(q, k, None, 0.2, self_pair=True)) == pytest.approx(expected)
    assert float(oracles.loss(q, k, None, 0.2)) < expected


def entries_of(tmp_path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((tmp_path / "gpu-cpu-peers.json").read_text())["result"][
        "measured"
    ]
    return found


def test_a_wrong_peer_is_not_timed(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = PEERS[0]._replace(name="wrong", build=lambda *_: lambda q, k, groups: 1.1 * (q * k).sum().float())
    broken = PEERS[0]._replace(name="broken", build=lambda *_: 1 / 0)
    nan = PEERS[0]._replace(
        name="nan", build=lambda *_: lambda q, k, groups: (q * k).sum().float() * torch.nan
    )
    monkeypatch.setattr("bench.gpu.peers.__main__.PEERS", (wrong, broken, nan))
    for name in ("wrong", "broken", "nan"):
        run(name, setting)
    found = {entry["peer"]: entry for entry in entries_of(tmp_path)}
    assert found["wrong"]["failed"] == found["nan"]["failed"] == "not correct"
    assert "forward" not in found["wrong"]
    assert found["broken"]["skipped"].startswith("ZeroDivisionError")


def test_peer_in_a_process_of_its_own(setting: Setting, tmp_path: Path) -> None:
    in_own_process("Liger-Kernel", setting)
    (entry,) = entries_of(tmp_path)
    assert entry["peer"] == "Liger-Kernel"
    assert "liger_kernel" in entry["skipped"] or "no contrastive loss" in entry["skipped"]


def test_peers_state_their_task_once() -> None:
    assert len({(peer.name, peer.task) for peer in PEERS}) == len(PEERS)
    assert all(peer.differs for peer in PEERS if peer.self_pair)


def test_package_without_its_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wants_much" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "wants_much" / "__init__.py").write_text("import something_that_is_not_there\n")
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "leaf.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    bare_packages("wants_much", "wants_much.inner")
    from wants_much.inner import leaf

    assert leaf.VALUE == 3
    with pytest.raises(ImportError, match="No module named 'not_there_at_all'"):
        bare_packages("not_there_at_all")


def test_temperature_of_the_bench_is_plain() -> None:
    from pscl_kernels.patch_nt_xent.operation import PLAIN_TEMPERATURE

    assert TEMPERATURE >= PLAIN_TEMPERATURE
