"""Recording the communication of the ranks, so that a hang can be examined afterwards.

torch keeps the last collective operations of each rank in memory (its flight recorder) if the environment says so. torch
itself writes them when NCCL's time limit is over, which is later than the verdict of the heartbeat that ends the ranks; so
they are written then. ``python -m torch.distributed.flight_recorder.fr_trace FOLDER -p PREFIX`` compares the ranks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = "communication"
"""In the run folder."""
_EVENTS = "2000"
_PREFIX = "TORCH_FR_DUMP_TEMP_FILE"


def record_communication(run: Path, start: str) -> None:
    """Set the variables that torch and NCCL read, before the ranks join; those of the user are left.

    Args:
        run: The run folder; files go into its folder ``communication``.
        start: Begins the names of the files of this start of the job.
    """
    folder = run.absolute() / FOLDER
    folder.mkdir(exist_ok=True)
    prefix = str(folder / f"{start}-rank_")
    variables = {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET,COLL",
        "NCCL_DEBUG_FILE": str(folder / f"{start}-%h-%p.log"),
        # The second of each pair is the name before torch 2.9, which still holds.
        "TORCH_FR_BUFFER_SIZE": _EVENTS,
        "TORCH_NCCL_TRACE_BUFFER_SIZE": _EVENTS,
        _PREFIX: prefix,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def write_recorded(rank: int) -> None:
    """Write what this rank has recorded, if it records."""
    prefix = os.environ.get(_PREFIX)
    if not prefix:
        return
    import torch._C._distributed_c10d as c10d

    # With NCCL there are two recorders, of which this one has the operations of the GPUs.
    dump = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)
    if dump is None:
        return
    path = Path(f"{prefix}{rank}")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(dump())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        print(f"warning: {path} could not be written ({error})", file=sys.stderr, flush=True)
