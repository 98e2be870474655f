"""Similarity sampling on a GPU: the Triton kernels against the tiled backend and the loop over templates."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ceilings
from bench.gpu.measure import measure_or_reason
from bench.record import record
from pscl_kernels import sample_similar

WIDTH = 64
SHAPES = [
    (batch, count, places)
    for batch, places in ((8, 35_344), (256, 8_836), (256, 35_344), (256, 141_376))
    for count in (64, 240, 480)
]
LOOP_CHOICES = 512
"""Most choices (images x templates) for which the loop is run; beyond, its time is that of launches alone."""

Sampling = Callable[[Tensor, Tensor], Tensor]


def loop(templates: Tensor, cells: Tensor) -> Tensor:
    """The loop of the method's first implementation, on cosines."""
    templates = torch.nn.functional.normalize(templates, dim=1)
    taken = torch.empty(cells.shape[0], templates.shape[0], dtype=torch.int64, device=cells.device)
    for image in range(cells.shape[0]):
        features = torch.nn.functional.normalize(cells[image], dim=1)
        similarity = torch.einsum("td,pd->tp", templates, features)
        highest = similarity.max()
        for template in range(templates.shape[0]):
            cell = similarity[template].argmax()
            taken[image, template] = cell
            similarity[:, cell] -= highest
    return taken


def backend(name: str) -> Sampling:
    return lambda templates, cells: sample_similar(templates, cells, backend=name)


def main() -> None:
    ceiling = ceilings.read()
    table = []
    for batch, count, places in SHAPES:
        torch.manual_seed(0)
        cells = torch.randn(batch, places, WIDTH, device="cuda", dtype=torch.bfloat16)
        templates = torch.randn(count, WIDTH, device="cuda", dtype=torch.bfloat16)
        read = 2 * cells.numel() / ceiling["copy_bytes_per_second"]
        product = 2 * cells.numel() * count / ceiling["bfloat16_flops_per_second"]
        chosen = {"triton": backend("triton"), "chunked": backend("chunked")}
        if batch * count <= LOOP_CHOICES:
            chosen["loop"] = loop
        for name, sample in chosen.items():

            def call(t: Tensor = templates, c: Tensor = cells, sample: Sampling = sample) -> Tensor:
                return sample(t, c)

            measured: dict[str, Any] = dict(measure_or_reason(call))
            entry = {"images": batch, "templates": count, "cells": places, "implementation": name, **measured}
            if name == "triton" and "median_ms" in measured:
                entry["share_of_floor"] = max(read, product) * 1e3 / measured["median_ms"]
            print(entry)
            table.append(entry)
        del cells
        torch.cuda.empty_cache()
    result = {"dtype": "bfloat16", "width": WIDTH, "measured": table}
    print(record("gpu-sample-similar", result, command="bash bench/gpu.sh OUT"))


if __name__ == "__main__":
    main()
