"""A node that only seems to be down: what it still writes does not reach the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pscl_hpc.launch.profiles import Profile

from .conftest import Cluster, at_gate, eventually, finish, node_of, start

pytestmark = pytest.mark.usefixtures("place")
Undisturbed = Callable[[int], str]


def test_a_node_without_network_cannot_write_into_the_resumed_run(
    cluster: Cluster, undisturbed: Undisturbed
) -> None:
    done = start("runs/a", Profile(nodes=2, time="20"))
    at_gate(done)
    node = node_of(done, 0)

    def orphans() -> str:
        return cluster("inside", node, "sh", "-c", "pgrep -f [s]ubmitit.core._submit || true")

    cluster("unplug", node)
    try:
        # Its tasks keep running while other nodes take over.
        at_gate(done, 1)
        assert node not in (node_of(done, 0), node_of(done, 1))
        assert orphans()
        assert finish(done) == undisturbed(2)
    finally:
        cluster("plug", node)
    eventually("no task is left on the node", lambda: not orphans())
    # The orphan's writes were refused.
    assert finish(done) == undisturbed(2)
