"""The loss against loops over pixels in float64, and its gradient against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pscl_hpc.models import SegmentationNet
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.segmentation import ClassList
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.losses import SegmentationLoss, class_weights

from .helpers import reader

FOUR = ClassList(("matrix", "network", "particle", "bar"), 0, (3,))
WEIGHTS = (1.0, 2.0, 10.0, 7.0)


def naive(
    logits: Tensor, targets: Tensor, classes: ClassList, weights: tuple[float, ...]
) -> tuple[float, float]:
    """Cross entropy and Dice loss, pixel by pixel."""
    kept = classes.kept
    summed, pixels = 0.0, 0
    probability = dict.fromkeys(classes.foreground, 0.0)
    overlap = dict(probability)
    counts = dict.fromkeys(classes.foreground, 0)
    batch, _, height, width = logits.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                truth = int(targets[b, y, x])
                if truth == 255 or truth in classes.ignored:
                    continue
                values = {index: math.exp(float(logits[b, index, y, x])) for index in kept}
                share = {index: value / sum(values.values()) for index, value in values.items()}
                summed -= weights[truth] * math.log(share[truth])
                pixels += 1
                for index in classes.foreground:
                    probability[index] += share[index]
                    if truth == index:
                        overlap[index] += share[index]
                        counts[index] += 1
    shown = [index for index in classes.foreground if counts[index]]
    dice = [1 - (2 * overlap[index] + 1e-4) / (probability[index] + counts[index] + 1e-4) for index in shown]
    return summed / max(pixels, 1), sum(dice) / len(dice) if dice else 0.0


def example(seed: int, values: list[int], shape: tuple[int, int, int] = (2, 3, 4)) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=2, size=(shape[0], 4, *shape[1:])))
    return logits, torch.from_numpy(rng.choice(values, shape).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sets(st.sampled_from([0, 1, 2, 3, 255]), min_size=1))
def test_terms_equal_naive_loops(seed: int, values: set[int]) -> None:
    logits, targets = example(seed, sorted(values))
    terms = SegmentationLoss(FOUR, WEIGHTS, ce_weight=0.3, dice_weight=0.7)(logits, targets)
    cross_entropy, dice = naive(logits, targets, FOUR, WEIGHTS)
    assert float(terms.cross_entropy) == pytest.approx(cross_entropy, abs=1e-10)
    assert float(terms.dice) == pytest.approx(dice, abs=1e-10)
    assert float(terms.total) == pytest.approx(0.3 * cross_entropy + 0.7 * dice, abs=1e-10)


def test_gradient_equals_finite_differences() -> None:
    logits, targets = example(3, [0, 1, 2, 3, 255])
    loss = SegmentationLoss(FOUR, WEIGHTS)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets).total, (logits,))


@pytest.mark.parametrize("value", [3, 255])
def test_ignored_and_unannotated_pixels_have_no_gradient(value: int) -> None:
    logits, targets = example(4, [0, 1, 2])
    targets[:, 1] = value
    logits.requires_grad_()
    SegmentationLoss(FOUR, WEIGHTS)(logits, targets).total.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 1] == 0).all()
    assert (logits.grad[:, :3, 0] != 0).all()


def test_the_logit_of_an_ignored_class_has_no_gradient() -> None:
    logits, targets = example(5, [0, 1, 2, 3])
    logits.requires_grad_()
    SegmentationLoss(FOUR, WEIGHTS)(logits, targets).total.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 3] == 0).all()


def test_without_annotated_pixels_loss_and_gradient_are_zero() -> None:
    logits, targets = example(6, [255])
    logits.requires_grad_()
    terms = SegmentationLoss(FOUR, WEIGHTS)(logits, targets)
    terms.total.backward()
    assert [float(term.detach()) for term in terms] == [0.0, 0.0, 0.0]
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_a_perfect_prediction_without_the_foreground_costs_nothing_and_is_not_rewarded() -> None:
    # The released loss gives -1 for a class that is in neither.
    targets = torch.zeros(1, 3, 3, dtype=torch.uint8)
    logits = torch.full((1, 4, 3, 3), -50.0, dtype=torch.float64)
    logits[:, 0] = 50
    terms = SegmentationLoss(FOUR, WEIGHTS)(logits, targets)
    assert float(terms.dice) == 0
    assert float(terms.cross_entropy) == pytest.approx(0, abs=1e-12)


def test_cross_entropy_is_divided_by_the_number_of_pixels() -> None:
    logits, targets = example(7, [2])
    once = SegmentationLoss(FOUR, (1, 1, 1, 1))(logits, targets).cross_entropy
    tenfold = SegmentationLoss(FOUR, (1, 1, 10, 1))(logits, targets).cross_entropy
    assert float(tenfold) == pytest.approx(10 * float(once))


def test_half_precision_logits_are_computed_in_single() -> None:
    logits, targets = example(8, [0, 1, 2])
    rough = logits.to(torch.bfloat16)
    loss = SegmentationLoss(FOUR, WEIGHTS)
    assert loss(rough, targets).total.dtype == torch.float32
    assert float(loss(rough, targets).total) == pytest.approx(
        float(loss(rough.double(), targets).total), rel=1e-5
    )


def test_class_weight_rules() -> None:
    pixels = np.array([10_000, 2500, 4, 0])
    assert class_weights("uniform", pixels) == (1, 1, 1, 1)
    total = pixels.sum()
    balanced = class_weights("balanced", pixels)
    assert balanced[:2] == pytest.approx([math.sqrt(total / 10_000), math.sqrt(total / 2500)])
    assert balanced[2:] == (10.0, 1.0)
    assert class_weights((1, 2, 3, 4), pixels) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="4 classes"):
        class_weights((1, 2), pixels)
    with pytest.raises(ValueError, match="4 classes"):
        SegmentationLoss(FOUR, (1, 2))


def test_unweighted_probabilities_are_the_shares_of_the_classes() -> None:
    # A network that sees nothing: the minimum of its weighted cross entropy is in its biases, and depends on the weights.
    targets = torch.tensor([0] * 7 + [1] * 6 + [2] * 2 + [3]).view(1, 4, 4)
    shares = torch.tensor([7, 6, 2, 1]) / 16
    weights = (1.0, 1.5, 5.0, 4.0)
    classes = ClassList(FOUR.names)
    net = SegmentationNet(UNet(UNetConfig(widths=(4, 8))), 4).eval()
    bias = net.classifier.bias
    assert bias is not None
    net.classifier.weight.data.zero_()
    bias.data = (torch.tensor(weights) * shares).log()
    image = torch.rand(1, net.trunk.in_channels, 4, 4)
    SegmentationLoss(classes, weights, ce_weight=1, dice_weight=0)(net(image), targets).total.backward()
    assert bias.grad is not None
    assert bias.grad.abs().max() < 1e-6

    def predicted(unweighted: bool, weights: tuple[float, ...] = weights) -> tuple[int, float]:
        sure = np.zeros((4, 4), np.uint8)
        predict = Predictor(
            net,
            classes,
            torch.device("cpu"),
            inference=InferenceConfig(unweighted=unweighted),
            class_weights=weights,
        )
        (label,) = np.unique(predict(reader(image[0].numpy()), 4, 4, confidence=sure))
        return int(label), float(sure[0, 0]) / 255

    most = torch.tensor(weights) * shares
    assert predicted(unweighted=False) == (2, pytest.approx(float(most[2] / most.sum()), abs=0.003))
    assert predicted(unweighted=True) == (0, pytest.approx(7 / 16, abs=0.003))
    assert predicted(unweighted=True, weights=()) == predicted(unweighted=False)
