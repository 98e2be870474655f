"""The group-masked NT-Xent loss in fused Triton kernels.

In the forward pass, `preparation` normalises, scales, casts and sorts the rows, and `forward` computes the sum of
exponentials of each row. In the backward pass, `backward` adds up the gradient of each row as query and as negative,
and passes it through the normalisation to the row of the input. Every program computes a block of rows and visits the
columns in a fixed order, so there are no atomic additions and results repeat to the last bit.
"""

from pscl_kernels.patch_nt_xent.triton.backward import row_gradients, temperature_gradient
from pscl_kernels.patch_nt_xent.triton.forward import local_sums, log_sums
from pscl_kernels.patch_nt_xent.triton.preparation import mean, prepare
from pscl_kernels.patch_nt_xent.triton.tiling import layout

__all__ = ["layout", "local_sums", "log_sums", "mean", "prepare", "row_gradients", "temperature_gradient"]
