"""The parts of `bench/gpu.sh`: floors, files that resume, the correctness gate, the peers."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu import adapters, check, operations, peers, pretrain, step
from bench.gpu.ceilings import Ceilings
from bench.gpu.run import KERNELS, UNFINISHED, Results, Setting, fingerprint
from bench.gpu.shapes import TEMPERATURE, LossShape, QueueShape, SamplingShape
from pscl_hpc.archive import Archive
from pscl_kernels.patch_nt_xent.operation import PLAIN_TEMPERATURE

H100 = Ceilings(3.0e12, 790e12, 3.7e12)
BFLOAT16 = torch.bfloat16


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setenv("PSCL_BENCH_RESULTS", str(tmp_path))
    return Setting(torch.device("cpu"), 60.0)


def measured(folder: Path, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"gpu-cpu-{part}.json").read_text())["result"][
        "measured"
    ]
    return found


@pytest.mark.parametrize(("width", "expected"), [(64, 2.55), (128, 4.18), (256, 8.35)])
def test_floors_of_the_loss(width: int, expected: float) -> None:
    found = H100.loss(LossShape(65_536, width, 0, BFLOAT16))
    assert found["forward and backward"] == pytest.approx(expected, abs=0.01)
    quarter = H100.loss(LossShape(65_536, width, 4, BFLOAT16))
    assert all(quarter[key] == pytest.approx(0.75 * found[key]) for key in found)


def test_floors_of_queue_and_sampling() -> None:
    found = H100.queue(QueueShape(65_536, 65_536, 128, BFLOAT16))
    assert found["forward and backward"] == pytest.approx(2.78, abs=0.01)
    by_templates = {n: H100.sampling(SamplingShape(256, n, 35_344, 64, BFLOAT16)) for n in (64, 240, 480)}
    assert by_templates[64] == pytest.approx(0.39, abs=0.01)
    # From 264 templates on, the products take longer than reading.
    assert by_templates[480] > 1.7 * by_templates[240]


def test_results_resume_with_the_same_sources_only(setting: Setting, tmp_path: Path) -> None:
    Results("thing", setting).add({"rows": 4, "value": 1.0})
    again = Results("thing", setting)
    assert again.find(rows=4) == {"rows": 4, "value": 1.0}
    assert again.find(rows=5) is None
    again.measure({"rows": 4}, lambda: pytest.fail("measured again"))
    path = tmp_path / "gpu-cpu-thing.json"
    content = json.loads(path.read_text())
    assert content["result"]["circumstances"]["sources"] == {"pscl_kernels": fingerprint(KERNELS)}
    content["result"]["circumstances"]["sources"] = {"pscl_kernels": "other"}
    path.write_text(json.dumps(content))
    assert not Results("thing", setting).entries
    late = Results("thing", Setting(setting.device, -1.0))
    with pytest.raises(SystemExit) as end:
        late.measure({"rows": 5}, lambda: pytest.fail("measured late"))
    assert end.value.code == UNFINISHED


def test_results_of_two_archives_or_toolkits_do_not_mix(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(pretrain, "TOOLKIT", package)
    with Archive(pretrain.synthetic(setting, tmp_path)) as archive:
        pretrain.opened(setting, archive, "a.h5").add({"batch_size": 8})
        assert pretrain.opened(setting, archive, "a.h5").entries
        assert not pretrain.opened(setting, archive, "b.h5").entries
        (package / "losses.py").write_text("other = True\n")
        assert not pretrain.opened(setting, archive, "a.h5").entries


def test_failures_are_tried_again_except_for_memory(setting: Setting) -> None:
    first = Results("thing", setting)
    first.add({"rows": 1, "forward": {"median_ms": 1.0}})
    first.add({"rows": 2, "forward": {"failed": "out of memory"}, "failed": "out of memory"})
    first.end()
    first.add({"rows": 3, "failed": "RuntimeError: launch"})
    first.add({"rows": 4, "forward": {"median_ms": 1.0}, "errors": {"failed": "ValueError: no"}})
    with pytest.raises(SystemExit, match=r"RuntimeError: launch; ValueError: no"):
        first.end()
    first.end(ignore=lambda entry: entry["rows"] > 2)
    again = Results("thing", setting)
    assert [entry["rows"] for entry in again.entries] == [1, 2]
    assert [entry["rows"] for entry in Results("thing", setting, keep_failures=True).entries] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("operation", "inputs"),
    [("patch_nt_xent", "pairs"), ("sample_similar", "patches_of"), ("queue_info_nce", "queued")],
)
def test_a_shape_that_fails_does_not_end_a_part(
    operation: str, inputs: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(operations, "require", lambda *_: None)
    monkeypatch.setattr(operations, "available_backends", lambda _: ("chunked",))
    monkeypatch.setattr(operations, "errors", fail)
    with monkeypatch.context() as context:
        context.setattr(operations, inputs, fail)
        with pytest.raises(SystemExit, match="broken"):
            operations.run(setting, operation)
    part = operation.replace("_", "-")
    failed = measured(tmp_path, part)
    assert {entry["failed"] for entry in failed} == {"ValueError: broken"}
    if operation == "sample_similar":
        return  # its Triton backend needs the interpreter; `--dry` measures it
    with pytest.raises(SystemExit, match="broken"):
        operations.run(setting, operation)
    found = measured(tmp_path, part)
    assert len(found) == len(failed)
    # Where Triton cannot run, only "chunked" is measured; times are kept if only the errors fail.
    assert {entry["implementation"] for entry in found} == {"chunked"}
    assert all(entry["errors"] == {"failed": "ValueError: broken"} for entry in found)
    assert all(entry["forward"]["median_ms"] > 0 for entry in found)


def test_error_of_soft_labels_is_not_that_of_rounded_weights(setting: Setting) -> None:
    """`chunked` computes bfloat16 rows in float32, so a larger error would come from different weights."""
    shape = QueueShape(24, 40, 16, BFLOAT16)
    assert operations.measure_queue(setting, shape, "soft", "chunked", None)["loss_error"] < 1e-6


def test_nothing_is_measured_that_is_not_correct(setting: Setting) -> None:
    with pytest.raises(SystemExit, match="patch_nt_xent"):
        check.require(setting, "patch_nt_xent")
    results = Results("correctness", setting)
    results.add({"operation": "patch_nt_xent", "passed": True, "summary": ""})
    results.add({"operation": "sample_similar", "passed": False, "summary": ""})
    check.require(setting, "patch_nt_xent")
    for run in (
        lambda: check.require(setting, "patch_nt_xent", "sample_similar"),
        lambda: operations.run(setting, "sample_similar"),
        lambda: step.run(setting),
        lambda: pretrain.run(setting, Path("absent.h5"), "absent.h5"),
    ):
        with pytest.raises(SystemExit, match="sample_similar"):
            run()


@pytest.mark.parametrize(("body", "passed"), [("assert True", True), ("assert False", False)])
def test_outcome_of_a_suite(
    body: str, passed: bool, setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "SUITE", tmp_path / "suite.py")
    (tmp_path / "suite.py").write_text(
        f"def test_patch_nt_xent():\n    {body}\ndef test_other():\n    assert False\n"
    )
    found = check.outcome("patch_nt_xent", check.start("patch_nt_xent", setting), setting)
    assert found["passed"] is passed
    assert "1 deselected" in found["summary"]


@pytest.mark.parametrize("most", [4, 8, 100, 5000])
def test_batches_of_a_step_grow_until_one_does_not_fit(
    most: int, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def measure(setting: Setting, form: str, size: int, batch: int, checkout: object) -> dict[str, Any]:
        tried.append(batch)
        if batch > most:
            raise torch.cuda.OutOfMemoryError
        return {"images_per_second": 1.0, "peak_bytes": 1}

    monkeypatch.delenv("RELEASED", raising=False)
    monkeypatch.setattr(step, "require", lambda *_: None)
    monkeypatch.setattr(step, "measured", measure)
    monkeypatch.setattr(step, "setup_device", lambda _: None)
    monkeypatch.setattr(Setting, "dry", False)
    monkeypatch.setattr(Setting, "slug", lambda _: "gpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for _ in range(2):
        step.run(setting)  # the second time there is nothing left to measure
    expected = [batch for batch in step.BATCHES if batch // 2 <= most or batch == step.BATCHES[0]]
    assert tried == 2 * expected
    summary = json.loads((tmp_path / "gpu-gpu-step.json").read_text())["result"]["summary"]
    fitting = [batch for batch in expected if batch <= most]
    assert [form["largest_images"] - 1 for form in summary.values()] == 2 * fitting[-1:]
    (tmp_path / "gpu-gpu-step.json").unlink()
    monkeypatch.setattr(Setting, "left", lambda _: 1.0 - len(tried) / (2 * len(expected) + 1))
    with pytest.raises(SystemExit) as end:
        step.run(setting)  # time is up after the first batch, whose result is kept
    assert end.value.code == UNFINISHED
    kept = json.loads((tmp_path / "gpu-gpu-step.json").read_text())["result"]
    assert len(kept["measured"]) == 1
    assert list(kept["summary"]) == (["ours"] if most >= step.BATCHES[0] else [])


def test_summary_of_steps() -> None:
    def entry(form: str, images: int, rate: float) -> dict[str, Any]:
        return {"form": form, "images": images, "images_per_second": rate, "peak_bytes": images}

    entries = [entry("released", 9, 10.0), entry("released", 17, 8.0), entry("ours", 9, 50.0)]
    entries += [entry("ours", 513, 400.0), {"form": "ours", "images": 1025, "failed": "out of memory"}]
    found = step.summary(entries)
    assert found["ours"]["speedup_small"] == 5.0
    assert found["ours"]["speedup_best"] == 40.0
    assert found["ours"]["largest_images"] == 513
    assert "ours, bf16" not in found


def test_what_a_peer_with_its_own_product_computes() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1)
    sums = [sum(math.exp(float(z[i] @ z[j]) / 0.2) for j in range(10)) for i in range(10)]
    expected = sum(math.log(sums[i]) - float(z[i] @ z[(i + 5) % 10]) / 0.2 for i in range(10)) / 10
    peer = adapters.PEERS[0]
    assert float(
        peers.definition(peer._replace(self_pair=True), q, k, None, temperature=0.2)
    ) == pytest.approx(expected)
    assert float(peers.definition(peer, q, k, None, temperature=0.2)) < expected


def test_a_wrong_peer_is_not_timed(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = adapters.PEERS[0]
    calls = {
        "wrong": lambda q, k, groups, t: 1.1 * right.call(q, k, groups, t),
        "broken": lambda *_: 1 / 0,
        "nan": lambda q, k, groups, t: (q * k).sum().float() * torch.nan,
    }
    several = [right._replace(name=name, call=call) for name, call in calls.items()]
    several.append(right._replace(name="absent", package="no-such-package"))
    monkeypatch.setattr(peers, "PEERS", several)
    for peer in several:
        peers.run(peer.name, setting)
    found = {entry["peer"]: entry for entry in measured(tmp_path, "peers")}
    assert found["wrong"]["failed"] == found["nan"]["failed"] == "not correct"
    assert "forward" not in found["wrong"]
    assert found["broken"]["failed"].startswith("ZeroDivisionError")
    assert "no-such-package" in found["absent"]["skipped"]


def test_a_peer_that_crashes_or_runs_out_of_time(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, done in ((UNFINISHED, False), (0, True), (-11, True)):
        completed = subprocess.CompletedProcess("python", code)
        ended = SimpleNamespace(
            run=lambda *_, completed=completed, **__: completed, TimeoutExpired=TimeoutError
        )
        monkeypatch.setattr(peers, "subprocess", ended)
        assert peers.in_own_process("a peer", setting) is done
    (entry,) = measured(tmp_path, "peers")
    assert "-11" in entry["skipped"]
    assert not peers.in_own_process("a peer", Setting(setting.device, 0.0))


CPU_PEERS = [p for p in adapters.PEERS if p.package == "torch" and p.gradient_on_cpu and not p.needs_gpu]


@pytest.mark.parametrize("peer", CPU_PEERS, ids=lambda peer: f"{peer.task}, {peer.name}")
def test_torch_peers_are_correct(peer: adapters.Peer, setting: Setting) -> None:
    """In float32, with the gradients that adapters assemble themselves."""
    shapes: list[Any] = [
        LossShape(60, 8, groups, torch.float32) for groups in ((0, 4) if peer.groups else (0,))
    ]
    if peer.task == "queue":
        shapes = [QueueShape(30, 50, 8, torch.float32)]
    for shape in shapes:
        with torch.compiler.set_stance("force_eager"):
            found = peers.peer_errors(peer, shape, setting)
        assert found["loss_error"] < 1e-5
        assert found["gradient_error"] < 1e-4


def test_peers_state_their_task_once() -> None:
    assert len({(peer.name, peer.task) for peer in adapters.PEERS}) == len(adapters.PEERS)
    assert all(peer.differs for peer in adapters.PEERS if peer.self_pair)


def test_package_without_its_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wants_much" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "wants_much" / "__init__.py").write_text("import something_that_is_not_there\n")
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "leaf.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    adapters.bare_packages("wants_much", "wants_much.inner")
    from wants_much.inner import leaf

    assert leaf.VALUE == 3
    with pytest.raises(ImportError, match="not_there_at_all"):
        adapters.bare_packages("not_there_at_all")


def test_temperature_of_the_measurements_needs_no_running_maximum() -> None:
    assert TEMPERATURE >= PLAIN_TEMPERATURE
