"""Ranks and nodes that crash: the weights are those of an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pscl_hpc.launch.profiles import Profile

from .conftest import Cluster, at_gate, ends, finish, first_steps, node_of, start

pytestmark = pytest.mark.usefixtures("place")
Undisturbed = Callable[[int], str]


def test_crashed_ranks_and_nodes_cost_the_steps_since_the_last_checkpoint(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    done = start("runs/a", Profile(nodes=2, time="20", retries=3))
    at_gate(done)
    node = node_of(done, 1)
    cluster("inside", node, "pkill", "-KILL", "-f", "submitit.core._submit")
    at_gate(done, 1)

    node = node_of(done, 1)
    cluster("crash", node)
    try:
        at_gate(done, 2)  # on the other nodes
    finally:
        cluster("boot", node)

    node = node_of(done, 1)
    cluster("crash", node)
    cluster("boot", node)
    at_gate(done, 3)

    assert finish(done) == undisturbed(2)
    assert first_steps(done) == [0, 4, 4, 4]
    assert "killed by signal 9" in ends(done)[0] or "rank 1 on" in ends(done)[0]
