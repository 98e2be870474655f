"""The gradient of the loss of a whole batch in the memory of a part of it (gradient cache, Gao et al., RepL4NLP 2021).

All parts are embedded without gradient. The loss of the joined embeddings gives their gradients. Then each part is
embedded again, and its graph carries its share of these gradients to the weights. On a trunk that treats each image on
its own this is the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pscl_hpc.errors import UserError
from pscl_hpc.methods import Embedding, Method, MethodOutput, Views, join
from pscl_hpc.seeding import Draws
from pscl_hpc.training.random_state import random_state, set_random_state
from pscl_hpc.training.reduce import sum_gradients


@dataclass(frozen=True)
class Part:
    """Images of a batch that are in memory at the same time."""

    views: Callable[[], Views]
    """Makes the views; the same ones at every call."""
    draws: Draws


def whole_batch_gradient(
    method: Method,
    parts: Sequence[Part],
    precision: Callable[[], AbstractContextManager[object]],
    measure: bool,
) -> MethodOutput:
    """Add the gradient of the loss of all parts of all ranks to that of the method's parameters.

    Args:
        method: On every rank the same.
        parts: The parts of this rank; every rank has as many.
        precision: Context of the forward computations.
        measure: Also compute the terms that are only logged.

    Returns:
        The loss of the whole batch, without graph.

    Raises:
        UserError: the method normalises over the images of a part before its loss.
    """
    with precision(), torch.no_grad():
        _survey(method, parts)
    states, found = [], []
    for part in parts:
        states.append(random_state())
        # The last part keeps its graph: it need not be computed again.
        with torch.set_grad_enabled(part is parts[-1]):
            found.append(_embed(method, part, precision, measure))
    trained = [tensor.requires_grad for tensor in found[-1].tensors()]
    slots = torch.tensor([slot for part in parts for slot in part.draws.slots])
    order = slots.argsort()
    device = found[-1].tensors()[0].device
    whole = join([one.leaves([False] * len(trained)) for one in found], order.to(device)).leaves(trained)
    with precision():
        output = method.loss(whole, measure)
    output.loss.backward()  # type: ignore[no-untyped-call]
    last = found.pop()
    found.clear()
    places = torch.split(order.argsort().to(device), [len(part.draws.slots) for part in parts])
    _carry(last, whole.gradients(places[-1]))
    del last
    for part, state, rows in zip(parts[:-1], states, places, strict=False):
        with _drawing_from(state, device):
            again = _embed(method, part, precision, measure)
        _carry(again, whole.gradients(rows))
        del again
    sum_gradients(method, method.process_group)
    return MethodOutput(output.loss.detach(), output.terms)


def batch_statistics(module: nn.Module) -> list[str]:
    """Names of the layers inside ``module`` that normalise by the statistics of a batch."""
    return [
        name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]


def _embed(
    method: Method, part: Part, precision: Callable[[], AbstractContextManager[object]], measure: bool
) -> Embedding:
    def refuse(layer: nn.Module, _: object) -> None:
        name = next(name for name, found in method.named_modules() if found is layer)
        raise UserError(
            f"accumulate=exact: {method.config.name} normalises by the statistics of a part of the batch in '{name}'; "
            "compute this layer in the method's loss, or set accumulate=1"
        )

    layers = [method.get_submodule(name) for name in batch_statistics(method)]
    hooks = [layer.register_forward_pre_hook(refuse) for layer in layers]
    try:
        with precision():
            return method.embed(part.views(), part.draws, measure)
    finally:
        for hook in hooks:
            hook.remove()


def _survey(method: Method, parts: Sequence[Part]) -> None:
    """Initialise a method that must know the whole batch first."""
    found: list[Tensor] = []
    for part in parts:
        known = method.survey(part.views(), part.draws)
        if known is None:
            return
        found.append(known)
    method.begin(torch.cat(found))


def _carry(embedding: Embedding, gradients: Sequence[Tensor | None]) -> None:
    """The backward pass from an embedding with these gradients."""
    pairs = [
        (tensor, gradient)
        for tensor, gradient in zip(embedding.tensors(), gradients, strict=True)
        if tensor.requires_grad and gradient is not None
    ]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


@contextmanager
def _drawing_from(states: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """Draw random numbers as after these states; the state afterwards is the one before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_random_state(states, device)
        yield
