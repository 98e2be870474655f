"""Our similarity sampling, and the released loop: image by image, template by template, each an argmax launch."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ceilings, floors, timing
from bench.gpu.check import require
from bench.gpu.measure import attempt, measure
from bench.gpu.results import Results
from bench.gpu.setting import UNFINISHED, Setting, parse
from bench.gpu.shapes import SamplingShape, name_of, patches_of, sampling_shapes
from pscl_kernels import sample_similar

LOOP = "released loop"

LOOP_CHOICES = 4096
"""Choices (images x templates) that the loop is given; it goes image by image, so that its time counts per image."""

Sampling = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    setting = parse(__doc__)
    require(setting, "sample_similar")
    ceiling = ceilings.load(setting)
    results = Results("sample-similar", setting, {}, of_kernels=True)
    for shape in sampling_shapes(setting):
        for name in (*setting.backends, LOOP):
            key = {**shape._asdict(), "dtype": name_of(shape.dtype), "implementation": name}
            if setting.only not in (None, name) or results.has(**key):
                continue
            if setting.left() < 0:
                print(f"no time left for {key}: run this part again to go on")
                sys.exit(UNFINISHED)
            results.add({**key, **attempt(partial(measured, setting, shape, name, ceiling))})
            if not setting.tiny:
                torch.cuda.empty_cache()
    results.end(leave_out=lambda entry: entry["implementation"] == LOOP)


def loop(templates: Tensor, patches: Tensor) -> Tensor:
    """The loop of the method's released code, on cosines: a taken patch loses the largest similarity.

    Rows are float32, as they are there.
    """
    templates = torch.nn.functional.normalize(templates.float(), dim=1)
    taken = []
    for image in patches:
        features = torch.nn.functional.normalize(image.float(), dim=1)
        similarity = torch.einsum("td,pd->tp", templates, features)
        highest = similarity.max()
        chosen = []
        for template in range(len(templates)):
            patch = similarity[template].argmax(keepdim=True)
            similarity[:, patch] += -highest
            chosen.append(patch)
        taken.append(torch.cat(chosen))
    return torch.stack(taken)


def form(name: str) -> Sampling:
    if name == LOOP:
        return loop
    return lambda templates, patches: sample_similar(templates, patches, backend=name)


def measured(
    setting: Setting, shape: SamplingShape, name: str, ceiling: floors.Ceilings | None
) -> dict[str, Any]:
    """Time, memory, share of the floor, and of the choices of image 0 how many are the exact greedy ones."""
    templates, patches = patches_of(setting, shape)
    images = shape.batch if name != LOOP else max(1, min(shape.batch, LOOP_CHOICES // shape.templates))
    given = patches[:images]
    sample = form(name)
    found = measure(setting, lambda: sample(templates, given))
    found["images_measured"] = images
    if "median_ms" not in found:
        return found
    found["ms_per_image"] = found["median_ms"] / images
    exact = sample_similar(templates.double(), patches[:1].double(), backend="reference")
    found["share_exact"] = float((sample(templates, patches[:1]) == exact).float().mean())
    if ceiling is not None:
        size = patches.element_size()
        floor = floors.sampling(images, shape.templates, shape.patches, shape.width, ceiling, size)
        found |= timing.share(floor, found)
    return found


if __name__ == "__main__":
    main()
