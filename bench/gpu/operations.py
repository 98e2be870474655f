"""The operations of pscl_kernels: time, memory, share of the floor and error of every backend.

    python -m bench.gpu.operations patch_nt_xent | queue_info_nce | sample_similar

An operation that has not passed the correctness suite is not measured.
"""

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ceilings import Ceilings, load, share
from bench.gpu.check import require
from bench.gpu.measure import BOTH, Loss, errors, measure, measure_loss
from bench.gpu.run import Results, Setting, attempt, parse
from bench.gpu.shapes import (
    TEMPERATURE,
    LossShape,
    QueueShape,
    SamplingShape,
    grouping,
    key_of,
    loss_shapes,
    pairs,
    patches_of,
    queue_shapes,
    queued,
    sampling_shapes,
)
from pscl_kernels import available_backends, patch_nt_xent, queue_info_nce, sample_similar

TRITON, CHUNKED = "triton", "chunked"
"""Backends that are measured: that of NVIDIA GPUs, and that of other devices."""

CHUNKED_ROWS = 65_536
"""Most rows for which "chunked" is measured, and errors are taken against its float64 result."""

LABELS = ("hard", "soft")
"""hard: the pair's own key is the only positive. soft: also entries of the same group and subgroup, by weight."""

LOOP = "released loop"
LOOP_CHOICES = 4096
"""Choices (images x templates) that the released loop makes in one measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operation", choices=["patch_nt_xent", "queue_info_nce", "sample_similar"])
    setting, options = parse(parser)
    run(setting, options.operation)


def run(setting: Setting, operation: str) -> None:
    """Measure one operation."""
    require(setting, operation)
    ceilings = load(setting)
    header: dict[str, Any] = {"temperature": TEMPERATURE} if operation != "sample_similar" else {}
    results = Results(operation.replace("_", "-"), setting, header)
    if operation == "patch_nt_xent":
        for shape in loss_shapes(setting):
            for backend in (TRITON, CHUNKED):
                if _can_run(setting, backend, shape):
                    key = {**key_of(shape), "implementation": backend}
                    results.measure(key, partial(measure_nt_xent, setting, shape, backend, ceilings))
    elif operation == "queue_info_nce":
        for entries in queue_shapes(setting):
            for labels in LABELS:
                for backend in (TRITON, CHUNKED):
                    if _can_run(setting, backend, entries):
                        key = {**key_of(entries), "labels": labels, "implementation": backend}
                        results.measure(
                            key, partial(measure_queue, setting, entries, labels, backend, ceilings)
                        )
    else:
        for images in sampling_shapes(setting):
            for name in (TRITON, CHUNKED, LOOP):
                key = {**key_of(images), "implementation": name}
                results.measure(key, partial(measure_sampling, setting, images, name, ceilings))
    results.end(ignore=lambda entry: entry["implementation"] == LOOP)


def _can_run(setting: Setting, implementation: str, shape: LossShape | QueueShape) -> bool:
    """Whether a backend takes such rows here: "triton" does not if shared memory is too small."""
    if implementation == CHUNKED:
        return shape.rows <= CHUNKED_ROWS
    features = torch.empty(0, shape.width, dtype=shape.dtype, device=setting.device)
    return TRITON in available_backends(features)


def nt_xent(groups: Tensor | None, backend: str) -> Loss:
    """The loss of (q, k) by one backend."""

    def call(q: Tensor, k: Tensor) -> Tensor:
        return patch_nt_xent(q, k, groups, temperature=TEMPERATURE, backend=backend)

    return call


def measure_nt_xent(
    setting: Setting, shape: LossShape, backend: str, ceilings: Ceilings | None
) -> dict[str, Any]:
    q, k = pairs(setting, shape.rows, shape.width, shape.dtype)
    groups = grouping(setting, shape.rows, shape.groups)
    call = nt_xent(groups, backend)
    found = measure_loss(setting, lambda: call(q, k), (q, k))
    floors = ceilings and ceilings.loss(shape)
    return _with_errors(found, floors, call, nt_xent(groups, CHUNKED), (q, k))


def measure_queue(
    setting: Setting, shape: QueueShape, labels: str, backend: str, ceilings: Ceilings | None
) -> dict[str, Any]:
    q, k, entries = queued(setting, shape)
    options = soft_labels(setting, shape) if labels == "soft" else {}

    def loss(backend: str) -> Loss:
        def call(q: Tensor, k: Tensor, entries: Tensor) -> Tensor:
            return queue_info_nce(q, k, entries, temperature=TEMPERATURE, backend=backend, **options)

        return call

    call = loss(backend)
    found = measure_loss(setting, lambda: call(q, k, entries), (q,))
    return _with_errors(found, ceilings and ceilings.queue(shape), call, loss(CHUNKED), (q, k, entries))


def soft_labels(setting: Setting, shape: QueueShape, groups: int = 4, subgroups: int = 6) -> dict[str, Any]:
    """Labels as in PSCL-MoCo: entries of a row's group are partly positive, and the less so the older they are."""
    row, entry = (torch.arange(n, device=setting.device) for n in (shape.rows, shape.entries))
    weight = 0.99 ** (entry // 256) / shape.entries
    return {
        "groups": row % groups,
        "queue_groups": entry % groups,
        "subgroups": row // groups % subgroups,
        "queue_subgroups": entry // groups % subgroups,
        "same_weight": 0.5 * weight,
        "any_weight": weight,
    }


def _with_errors(
    found: dict[str, Any],
    floors: dict[str, float] | None,
    call: Loss,
    exact: Loss,
    inputs: tuple[Tensor, ...],
) -> dict[str, Any]:
    """The measurement with shares of the floors and, for up to `CHUNKED_ROWS` rows, errors."""
    for what, floor in (floors or {}).items():
        found[what] |= share(floor, found[what])
    if "median_ms" in found[BOTH] and len(inputs[0]) <= CHUNKED_ROWS:
        wrong = attempt(lambda: errors(call, exact, inputs))
        found |= {"errors": wrong} if "failed" in wrong else wrong
    return found


def released_loop(templates: Tensor, patches: Tensor) -> Tensor:
    """The loop of the method's released code, on cosines of float32 rows: image by image, template by template.

    A patch that was taken loses the largest similarity.
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


def measure_sampling(
    setting: Setting, shape: SamplingShape, name: str, ceilings: Ceilings | None
) -> dict[str, Any]:
    """Time and memory, and the share of choices in image 0 that are the exact greedy ones."""
    templates, patches = patches_of(setting, shape)
    loop = name == LOOP
    sample = released_loop if loop else partial(sample_similar, backend=name)
    images = max(1, min(shape.batch, LOOP_CHOICES // shape.templates)) if loop else shape.batch
    given = patches[:images]
    found = measure(setting, lambda: sample(templates, given))
    found["images_measured"] = images
    if "median_ms" in found:
        found["ms_per_image"] = found["median_ms"] / images
        exact = sample_similar(templates.double(), patches[:1].double(), backend="reference")
        found["share_exact"] = float((sample(templates, patches[:1]) == exact).float().mean())
        if ceilings:
            found |= share(ceilings.sampling(shape._replace(batch=images)), found)
    return found


if __name__ == "__main__":
    main()
