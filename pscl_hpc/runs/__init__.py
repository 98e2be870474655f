"""Run folders: configuration, record, metrics, checkpoints, provenance.

Reading a run folder needs no torch, which takes seconds to import: it is imported only to read or write tensors.
"""

from pscl_hpc.runs.checkpoint import BackgroundWriter, CheckpointStore
from pscl_hpc.runs.folder import RunFolder
from pscl_hpc.runs.metrics import MetricsLog, read_metrics
from pscl_hpc.runs.provenance import commit, describe_device, job_start, node_name, now, versions

__all__ = [
    "BackgroundWriter",
    "CheckpointStore",
    "MetricsLog",
    "RunFolder",
    "commit",
    "describe_device",
    "job_start",
    "node_name",
    "now",
    "read_metrics",
    "versions",
]
