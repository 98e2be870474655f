"""Cluster profiles: values, precedence and errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.config import load_cluster, load_config
from pscl_hpc.errors import UserError
from pscl_hpc.launch.executors import check_resources, local_environment
from pscl_hpc.launch.profiles import Profile, known_profiles, load_profile, parse_time, requested_profile


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("0:00:01", 1), ("1-00:00:00", 1440), ("2-12:00:30", 2 * 1440 + 721)],
)
def test_time_limits_are_read(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "-5", "1:30", "1-12:30", "0", "0:00:00", "1:2:3:4", "9O"])
def test_an_invalid_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        parse_time(text)


@given(days=st.integers(0, 30), hours=st.integers(0, 23), minutes=st.integers(1, 59))
def test_time_limits_add_up(days: int, hours: int, minutes: int) -> None:
    assert parse_time(f"{days}-{hours:02d}:{minutes:02d}:00") == (days * 24 + hours) * 60 + minutes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "pscl-hpc" / "profiles"
    folder.mkdir(parents=True)
    return folder


def test_a_profile_is_found_by_name_or_file_and_the_command_line_wins(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text("partition: gpu\nnodes: 2\ngpus_per_node: 4\ntime: 90\nsetup: [module load x]\n")
    for name in ("mine", str(path)):
        profile = load_profile(name)
        assert (profile.partition, profile.tasks, profile.time_min) == ("gpu", 4, 90)
    over = profile.replace("command line", nodes=8, time="1-0:00:00", partition=None)
    assert (over.partition, over.nodes, over.time_min, over.setup) == ("gpu", 8, 1440, ("module load x",))
    # Ranks on CPUs replace the profile's ranks on GPUs.
    assert profile.replace("command line", tasks_per_node=3).tasks == 3
    assert (over.replace("x", tasks_per_node=3).gpus_per_node, over.tasks) == (None, 4)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("4:00:00", 240), ("08:00:00", 480), ("1:30:00", 90), ("1-00:00:00", 1440)),
        *(('"4:00:00"', 240), ("30", 30), ('"90"', 90)),
    ],
)
def test_a_time_limit_needs_no_quotes(folder: Path, text: str, minutes: int) -> None:
    (folder / "timed.yaml").write_text(f"time: {text}")
    assert load_profile("timed").time_min == minutes


def test_values_of_options_and_variables_stay_text(folder: Path) -> None:
    (folder / "timed.yaml").write_text("sbatch: {time-min: 2:00:00}\nenvironment: {LIMIT: 1:30:00.5}\n")
    profile = load_profile("timed")
    assert profile.sbatch == {"time-min": "2:00:00"}
    assert profile.environment == {"LIMIT": "1:30:00.5"}


def test_profiles_extend_each_other(folder: Path) -> None:
    (folder / "base.yaml").write_text("account: a1\nsetup: [module load x]\n")
    (folder / "big.yaml").write_text("extends: base.yaml\nnodes: 16\n")
    assert (load_profile("big").account, load_profile("big").nodes) == ("a1", 16)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("partitoin: gpu", "'partition'"),
        ("container: {image: y, pythn: x}", "'container.pythn'"),
        ("container: {how: apptainer}", "'container.image'"),
        ("nodes: 0", "'nodes'"),
        ("nodes: many", "'nodes'"),
        ("{gpus_per_node: 4, tasks_per_node: 8}", "tasks_per_node"),
        ("stage: scratch", "'scratch'"),
        ("environment: {'A B': x}", "'A B'"),
        ("sbatch: {output: x}", "sbatch.output"),
        ("sbatch: {cpus-per-task: 3}", "cpus_per_task"),
        ("time: tomorrow", "'tomorrow'"),
        ("[1, 2]", "bad.yaml"),
        (": :", "bad.yaml"),
    ],
)
def test_an_error_in_a_profile_is_one_line(folder: Path, text: str, named: str) -> None:
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        load_profile("bad")
    assert named in str(caught.value)


def test_an_unknown_profile_names_the_nearest(folder: Path) -> None:
    (folder / "juwels.yaml").write_text("time: 10")
    with pytest.raises(UserError, match="'juwels'"):
        load_profile("jewels")
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_profile("absent.yaml")


def test_the_profiles_of_the_checkout_are_valid() -> None:
    shipped = Path(__file__).parents[2] / "slurm" / "profiles"
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    assert names
    assert set(names) <= set(known_profiles())
    for name in names:
        assert load_profile(name).time_min == 240


@pytest.mark.parametrize(("time", "asked", "delay"), [("240", None, 120), ("1", None, 30), ("240", 600, 600)])
def test_the_signal_delay_fits_into_the_limit(time: str, asked: int | None, delay: int) -> None:
    assert Profile(time=time, signal_delay_s=asked).signal_delay == delay


@pytest.mark.parametrize(
    ("keys", "gpus"),
    [
        ({"gpus_per_node": 4}, 4),
        ({"gpus_per_node": "4"}, 4),
        ({"gpus_per_node": "a100:4"}, 4),
        ({"gpus_per_node": "1g.10gb:2"}, 2),
        ({"gpus_per_node": "a100:2,v100:1"}, 3),
        ({"gpus_per_node": 0}, 0),
        ({"sbatch": {"gres": "gpu:2"}}, 2),
        ({"sbatch": {"gres": "gpu"}}, 1),
        ({"sbatch": {"gres": "gpu:a100"}}, 1),
        ({"sbatch": {"gres": "gpu:a100:4(S:0-1)"}}, 4),
        ({"sbatch": {"gres": "craynetwork:1,gpu:a100_1g.5gb:2,gpu:a100_3g.20gb:1"}}, 3),
        ({"sbatch": {"gres": "craynetwork:1"}}, 0),
        ({"nodes": 2, "sbatch": {"gpus": "a100:8"}}, 4),
        ({"sbatch": {"gpus-per-task": 1}, "tasks_per_node": 3}, 3),
        ({"sbatch": {"gpus_per_task": "a100:1"}}, 1),
    ],
)
def test_requests_for_gpus_are_understood_in_every_form(keys: dict[str, object], gpus: int) -> None:
    profile = Profile.model_validate(keys)
    assert profile.gpus == gpus
    assert profile.tasks == max(1, gpus)
    nodes = profile.replace("command line", gpus_per_node="v100:2")
    assert (nodes.gpus, nodes.tasks) == (2, 2), "the command line wins"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"gpus_per_node": "a100:four"}, "a100:four"),
        ({"gpus_per_node": -1}, "-1"),
        ({"gpus_per_node": True}, "gpus_per_node"),
        (
            {"gpus_per_node": 2, "sbatch": {"gres": "gpu:2"}},
            "GPUs are requested twice, with gpus_per_node and sbatch.gres",
        ),
        ({"gpus_per_node": "a100:4", "tasks_per_node": 2}, "tasks_per_node"),
        ({"sbatch": {"gres": "gpu:4"}, "tasks_per_node": 2}, "tasks_per_node"),
        ({"nodes": 3, "sbatch": {"gpus": 4}}, "sbatch.gpus"),
        ({"sbatch": {"gpus-per-task": 2}}, "sbatch.gpus-per-task"),
    ],
)
def test_impossible_requests_for_gpus_are_refused(keys: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        Profile().replace("profile.yaml", **keys)


def test_variables_in_the_environment_of_a_local_job_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    profile = Profile(environment={"A": "$HOME/x", "B": "${A}:$5"})
    assert local_environment(profile) == {"A": "/home/me/x", "B": "/home/me/x:$5"}
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_VARIABLE"):
        check_resources("local", Profile(environment={"A": "$NO_SUCH_VARIABLE"}))


def test_scheduler_options_in_the_file_of_a_run(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\ntime: 60\nnodes: 1\naccount: ours\n")
    file = tmp_path / "run.yaml"
    file.write_text(
        "kind: pretrain\ndata: {archive: a.h5}\nbatch_size: 4\nmethod: {name: simclr}\n"
        f"cluster: {{profile: {site}, nodes: 4, gpus_per_node: 'a100:4', time: 4:00:00}}\n"
    )
    plain = tmp_path / "plain.yaml"
    plain.write_text(file.read_text().partition("cluster:")[0])
    assert load_config(file) == load_config(plain), "by hand the section is ignored"
    section = load_cluster(file, ["cluster.mem=64G"])
    found = requested_profile(None, section, str(file), nodes=2, account=None)
    assert found == Profile(
        partition="gpu", time="4:00:00", nodes=2, account="ours", gpus_per_node="a100:4", mem="64G"
    )
    other = tmp_path / "other.yaml"
    other.write_text("partition: big\n")
    named = requested_profile(str(other), section, str(file), gpus_per_node="0", tasks_per_node=3)
    assert (named.partition, named.account, named.nodes, named.tasks) == ("big", None, 4, 3)


@pytest.mark.parametrize(
    ("section", "named"),
    [("5", "cluster"), ("{nods: 2}", "nods"), ("{profile: 3}", "cluster.profile"), ("{nodes: 0}", "nodes")],
)
def test_a_wrong_section_of_scheduler_options_is_refused(tmp_path: Path, section: str, named: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"kind: pretrain\ncluster: {section}\n")
    with pytest.raises(UserError, match=rf"run\.yaml.*{named}"):
        requested_profile(None, load_cluster(file), str(file))
