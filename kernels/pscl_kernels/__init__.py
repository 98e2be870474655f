"""Operations of patch-sampled contrastive learning whose straightforward form does not fit into memory.

Every operation has several backends behind one interface; see `kernels/README.md`.
"""

from pscl_kernels.backends import BACKENDS, ENVIRONMENT_VARIABLE, available_backends
from pscl_kernels.patch_nt_xent import patch_nt_xent, patch_similarity_stats
from pscl_kernels.queue_info_nce import queue_info_nce
from pscl_kernels.sample_similar import sample_similar

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "available_backends",
    "patch_nt_xent",
    "patch_similarity_stats",
    "queue_info_nce",
    "sample_similar",
]
