"""A few steps of the main shapes, for a profiler to look at."""

import torch

from pscl_kernels import patch_nt_xent, sample_similar


def main() -> None:
    q, k = (
        torch.randn(32_768, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2)
    )
    cells = torch.randn(256, 35_344, 64, device="cuda", dtype=torch.bfloat16)
    for _ in range(4):
        patch_nt_xent(q, k, temperature=0.1, backend="triton").backward()
        sample_similar(cells[0, :64], cells, backend="triton")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
