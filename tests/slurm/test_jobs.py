"""Jobs on a real Slurm: arrays, cancelling, refused jobs and the limit of retries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pscl_hpc.config import resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.launch import stage_job, submission
from pscl_hpc.launch.control import cancel, follow_log, requeue
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.status import run_status
from pscl_hpc.launch.submission import show_script, submit, submit_many
from pscl_hpc.runs import RunFolder

from .conftest import STEPS, Cluster, at_gate, ended, finish, log_of, make_config, ranks_on, slurm, start

pytestmark = pytest.mark.usefixtures("place")


def test_a_cancelled_run_is_cancelled_in_slurm_and_can_be_submitted_again(
    undisturbed: Callable[[int], str],
) -> None:
    done = start("runs/a", Profile(nodes=2, time="20", cpus_per_task=1))
    at_gate(done)
    stopped = cancel(done.run)
    assert (stopped.state, stopped.checkpoint) == ("stopped", 6)
    assert ended(done).startswith("CANCELLED")
    assert ended(done).endswith("|0:0")
    again = requeue(done.run)
    assert again.state in ("queued", "starting", "running")
    first, second = job_records(done.run)
    assert first.profile == second.profile == {"nodes": 2, "time": "20", "cpus_per_task": 1}
    assert finish(done) == undisturbed(2)


def test_many_runs_are_one_array_with_separate_folders(place: Path) -> None:
    configs = [make_config(f"runs/{seed}", seed=seed) for seed in (1, 2, 1000)]
    twin = make_config("runs/twin", seed=1)
    done = submit_many(
        [*configs, twin],
        cluster="slurm",
        files=place / "an array",
        name="study",
        profile=Profile(time="10", setup=("echo setup of $SLURM_ARRAY_TASK_ID",)),
    )
    assert [each.job.job.rpartition("_")[2] for each in done] == ["0", "1", "2", "3"]
    assert len({each.job.job.partition("_")[0] for each in done}) == 1
    weights = [finish(each) for each in done]
    assert weights[0] == weights[3]
    assert len(set(weights)) == 3
    assert "setup of 2" in log_of(done[2])
    assert "rank 0 of 1 on n" in log_of(done[2])
    assert not (done[2].run / "jobs" / done[2].job.log(done[2].run).name).exists()


def test_the_script_of_a_dry_run_is_the_one_submitted(place: Path) -> None:
    config = make_config("runs/a 'b'", name="my.run")
    profile = Profile(
        nodes=2,
        time="1-0:00:00",
        partition="main",
        cpus_per_task=2,
        setup=("module() { :; }", "module load 'x y'"),
        environment={"NCCL_DEBUG": 'it\'s "WARN"'},
        sbatch={"comment": "of 'mine'", "exclusive": True, "begin": "now+1hour"},
    )
    before = sorted(place.rglob("*"))
    shown = show_script(config, cluster="slurm", profile=profile)
    assert sorted(place.rglob("*")) == before
    done = submit(config, cluster="slurm", profile=profile)
    submitted = done.run / "jobs" / f"{done.job.job}_submission.sh"
    assert submitted.read_text() == shown
    facts = slurm("scontrol", "show", "job", "--oneliner", done.job.job)
    assert "Comment=of 'mine'" in facts
    assert "NumNodes=2-2" in facts
    with pytest.raises(UserError, match=f"job {done.job.job} "):
        requeue(done.run)
    assert cancel(done.run).state == "stopped"


def test_fine_tuning_on_ranks_that_cannot_divide_its_batch_is_refused(place: Path) -> None:
    tree = {
        "kind": "finetune",
        "run": "runs/a",
        "data": {"archive": "a.h5"},
        "references": ["alloy/0"],
        "validation_split": "",
        "batch_size": 3,
    }
    with pytest.raises(UserError, match="batch_size=4"):
        submit(resolve_config(tree, source="test"), cluster="slurm", profile=Profile(nodes=2, time="10"))
    assert not (place / "runs").exists()


def test_wrong_input_is_not_retried(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("a.h5", "b.h5")
    # As if the archive were replaced while the job waits.
    monkeypatch.setattr(submission, "check_input", lambda config, profile: None)
    config = make_config("runs/a", data={"archive": "b.h5", "datasets": ["allox"]})
    done = submit(config, cluster="slurm", profile=Profile(nodes=2, time="10"))
    assert ended(done) == "FAILED|2:0"
    found = run_status(done.run)
    assert found.state == "failed"
    assert "'allox'" in found.detail
    assert log_of(done).count("rank 0 of 2") == 1


def test_a_job_that_always_fails_ends_after_its_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_job.STAGES, "pretrain", "gated_stage:die")
    done = submit(make_config("runs/a"), cluster="slurm", profile=Profile(time="10", retries=1))
    assert ended(done).startswith("FAILED")
    assert log_of(done).count("rank 0 of 1") == 2
    first, second = RunFolder.load(done.run).attempts
    assert first["ended"] == f"a rank on {first['node']} ended with exit code 137, killed by signal 9"
    assert "ended" not in second
    assert first["node"] != second["node"]
    found = run_status(done.run)
    assert found.state == "lost"
    assert "2 starts failed without a new checkpoint" in found.detail


@pytest.mark.parametrize(
    ("profile", "named"),
    [
        (
            {"nodes": 2, "setup": ("export SLURM_NNODES=1 SLURM_NTASKS=1",)},
            "2 x 1 ranks",
        ),
        ({"gpus_per_node": 1}, "GPU"),
        ({"gpus_per_node": "tesla:2"}, "GPU"),
        ({"sbatch": {"gres": "gpu:2"}}, "GPU"),
        ({"nodes": 2, "sbatch": {"gpus": "tesla:2"}}, "GPU"),
        # Not understood as a request, but Slurm gives the GPU.
        ({"sbatch": {"gpus-per-socket": 1, "sockets-per-node": 1}}, "GPU"),
        ({"setup": ("module load cuda/99",)}, "module load cuda/99"),
        ({"environment": {"A": "$NO_SUCH_VARIABLE"}}, "NO_SUCH_VARIABLE"),
    ],
)
def test_a_job_with_other_ranks_or_gpus_than_requested_fails_with_one_sentence(
    profile: dict[str, object], named: str
) -> None:
    done = submit(make_config("runs/a"), cluster="slurm", profile=Profile(time="10", **profile))  # type: ignore[arg-type]
    assert ended(done) == "FAILED|2:0"
    found = run_status(done.run)
    assert (found.state, named in found.detail) == ("failed", True), found
    assert "Traceback" not in log_of(done)


def test_code_that_changed_while_the_job_waited_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "source_hash", lambda: "0" * 64)
    done = submit(make_config("runs/a"), cluster="slurm", profile=Profile(time="10"))
    assert ended(done) == "FAILED|2:0"
    assert "--any-commit" in run_status(done.run).detail
    again = submit(make_config("runs/a"), cluster="slurm", profile=Profile(time="10"), any_commit=True)
    assert ended(again) == "COMPLETED|0:0"
    assert run_status(again.run).step == STEPS


def test_an_archive_is_staged_once_for_the_ranks_of_a_node(
    cluster: Cluster, undisturbed: Callable[[int], str]
) -> None:
    local = f"{cluster.environment['CLUSTER_DIR']}/local"
    done = submit(
        make_config("runs/a"),
        cluster="slurm",
        profile=Profile(nodes=2, tasks_per_node=2, time="10", stage=local),
    )
    assert ended(done) == "COMPLETED|0:0"
    texts = ["".join(follow_log(done.run, rank, follow=False)) for rank in range(4)]
    assert sum("staging" in text for text in texts) == 2
    copies = {
        cluster("inside", node, "ls", f"{local}/pscl-hpc-root")
        for node in ("n1", "n2", "n3")
        if ranks_on(done, node)
    }
    assert len(copies) == 1
    assert len(copies.pop().split()) == 2  # the copy and its lock
    assert finish(done) == undisturbed(4)
