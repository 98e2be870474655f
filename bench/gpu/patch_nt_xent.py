"""The loss on a GPU: the Triton kernels against the materialised loss, eager and compiled, and the tiled one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ceilings
from bench.gpu.measure import measure_or_reason
from bench.record import record
from pscl_kernels import patch_nt_xent

SHAPES = [(rows, width) for rows in (4_096, 16_384, 65_536, 262_144) for width in (64, 128, 256)] + [
    (1_048_576, 64)
]
GROUPS = (0, 4)  # 0: every pair its own group
TEMPERATURE = 0.1
MATERIALISED_ROWS = 65_536
"""Largest number of rows at which the implementations that hold the whole matrix, or walk it by launches, are tried."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def materialised(q: Tensor, k: Tensor, groups: Tensor) -> Tensor:
    n = q.shape[0]
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1)
    group = torch.cat([groups, groups])
    logits = (z @ z.T).float() / TEMPERATURE
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    negatives = torch.logsumexp(logits.masked_fill(group[:, None] == group[None, :], -math.inf), 1)
    return (torch.logaddexp(positive, negatives) - positive).mean()


def backend(name: str) -> Loss:
    return lambda q, k, groups: patch_nt_xent(q, k, groups, temperature=TEMPERATURE, backend=name)


def implementations(rows: int) -> dict[str, Loss]:
    chosen = {"triton": backend("triton")}
    if rows <= MATERIALISED_ROWS:
        chosen["chunked"] = backend("chunked")
        chosen["materialised"] = materialised
        chosen["materialised, torch.compile"] = torch.compile(materialised)
    return chosen


def floor_ms(rows: int, width: int, groups: int, ceiling: dict[str, Any]) -> dict[str, float]:
    """Time below which a row-wise forward, and forward and backward, cannot be, by products and by exponentials."""
    pairs = rows * rows * (1 - 1 / groups if groups else 1)
    exponentials = pairs / ceiling["exponentials_per_second"]
    forward = max(2 * pairs * width / ceiling["bfloat16_flops_per_second"], exponentials)
    backward = max(4 * pairs * width / ceiling["bfloat16_flops_per_second"], exponentials)
    return {"forward": forward * 1e3, "forward and backward": (forward + backward) * 1e3}


def error(q: Tensor, k: Tensor, groups: Tensor, loss: Loss) -> dict[str, float]:
    """Relative errors of loss and gradient against float64 in tiles, on the same rounded inputs."""

    def run(of: Loss, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        a, b = (x.detach().to(dtype).requires_grad_() for x in (q, k))
        value = of(a, b, groups)
        (gradient,) = torch.autograd.grad(value, a)
        return value.detach().double(), gradient.double()

    exact, exact_gradient = run(backend("chunked"), torch.float64)
    value, gradient = run(loss, q.dtype)
    return {
        "loss_error": float((value - exact).abs() / exact.abs()),
        "gradient_error": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
    }


def main() -> None:
    ceiling = ceilings.read()
    table = []
    for rows, width in SHAPES:
        for groups in GROUPS:
            torch.manual_seed(0)
            n = rows // 2
            q, k = (
                torch.randn(n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                for _ in range(2)
            )
            ids = torch.arange(n, device="cuda") // 16 % groups if groups else torch.arange(n, device="cuda")
            floors = floor_ms(rows, width, groups, ceiling)
            for name, loss in implementations(rows).items():

                def forward(q: Tensor = q, k: Tensor = k, ids: Tensor = ids, loss: Loss = loss) -> Tensor:
                    with torch.no_grad():
                        return loss(q, k, ids)

                def both(q: Tensor = q, k: Tensor = k, ids: Tensor = ids, loss: Loss = loss) -> object:
                    return torch.autograd.grad(loss(q, k, ids), (q, k))

                entry: dict[str, Any] = {
                    "rows": rows,
                    "width": width,
                    "groups": groups,
                    "implementation": name,
                }
                for what, call in (("forward", forward), ("forward and backward", both)):
                    measured: dict[str, Any] = dict(measure_or_reason(call))
                    if name == "triton" and "median_ms" in measured:
                        measured["share_of_floor"] = floors[what] / measured["median_ms"]
                    entry[what] = measured
                if rows <= 16_384 and "failed" not in entry["forward and backward"]:
                    entry |= error(q, k, ids, loss)
                print(entry)
                table.append(entry)
                torch.cuda.empty_cache()
    result = {"dtype": "bfloat16", "temperature": TEMPERATURE, "measured": table}
    print(record("gpu-patch-nt-xent", result, command="bash bench/gpu.sh OUT"))


if __name__ == "__main__":
    main()
