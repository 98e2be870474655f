"""Group-masked NT-Xent loss over patch features."""

from pscl_kernels.patch_nt_xent.interface import patch_nt_xent
from pscl_kernels.patch_nt_xent.statistics import patch_similarity_stats

__all__ = ["patch_nt_xent", "patch_similarity_stats"]
