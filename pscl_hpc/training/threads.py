"""How many CPU threads torch uses in a run.

Their number changes how sums are rounded, so the same numbers need the same number of threads. It is therefore not
measured, which would make it depend on what else the machine does: it is the number of CPUs that the process may use,
recorded in run.json (``decided``), and a resumed run uses the recorded number.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from pscl_hpc.config import TrainingConfig
from pscl_hpc.limits import usable_cpus
from pscl_hpc.runs import RunFolder, describe_device

if TYPE_CHECKING:
    from pscl_hpc.training.ranks import Ranks

THREADS = "runtime.threads"


def own_threads(local_world: int) -> int:
    """Threads for one of ``local_world`` processes of a run on this machine: one for each CPU it may use.

    They share the usable CPUs; in a Slurm job each has its own. At most OMP_NUM_THREADS, which is cpus-per-task there.
    Torch itself would start one for each core of the machine, also where a container may use only a few.
    """
    own = usable_cpus() if "SLURM_JOB_ID" in os.environ else usable_cpus() // local_world
    return max(1, min(torch.get_num_threads(), own))


def keep_threads(config: TrainingConfig, folder: RunFolder, ranks: Ranks) -> None:
    """On a CPU use as many threads as when the run began; at its first start record their number. All ranks call it.

    Args:
        config: The run.
        folder: Its folder, in which rank 0 records the number.
        ranks: The ranks that train together; those on other machines use the number of rank 0.
    """
    if ranks.device.type != "cpu" or config.runtime.threads:
        return
    if THREADS not in folder.decided:
        folder.decide({**folder.decided, THREADS: ranks.from_first(torch.get_num_threads)})
    threads = int(folder.decided[THREADS])
    here = torch.get_num_threads()
    if threads == here:
        return
    torch.set_num_threads(threads)
    if ranks.first:
        folder.update(device=describe_device(ranks.device))
    if here < threads:
        ranks.say(
            f"warning: the run began with {threads} CPU threads and keeps them, for the same numbers, but here it has only "
            f"{here} CPU{'s' if here > 1 else ''}; expect slower steps"
        )
