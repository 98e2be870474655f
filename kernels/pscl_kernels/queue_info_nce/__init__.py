"""InfoNCE against a queue of keys, with structured soft labels."""

from pscl_kernels.queue_info_nce.interface import queue_info_nce

__all__ = ["queue_info_nce"]
