"""Greedy similarity sampling of patches without replacement."""

from pscl_kernels.sample_similar.interface import sample_similar

__all__ = ["sample_similar"]
