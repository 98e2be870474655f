"""The group-masked NT-Xent loss in fused Triton kernels.

Forward, `preparation` normalises, scales, casts and sorts the rows, and `forward` gives each row its sum of
exponentials. Backward, `backward` sums up what acts on each row, whether it is query or negative, and carries that
through the normalisation to the input's own row. Every program owns a block of rows and walks the columns in one
order, so that nothing is accumulated by atomics and results do not vary. `symmetric` is a forward pass that computes
each pair of tiles once, also without atomics; `tiling.SYMMETRIC_FORWARD` selects it.
"""

from pscl_kernels.patch_nt_xent.triton.backward import row_gradients
from pscl_kernels.patch_nt_xent.triton.forward import local_sums, log_sums
from pscl_kernels.patch_nt_xent.triton.preparation import layout, prepare

__all__ = ["layout", "local_sums", "log_sums", "prepare", "row_gradients"]
