"""Clustering of separable features and of degenerate ones, and the loss against an oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pscl_hpc.methods import Setting, Views
from pscl_hpc.methods.common.clustering import Clusters, Moments, clearest, nearest
from pscl_hpc.methods.common.patches import patch_labels
from pscl_hpc.methods.pscl_clustered import PsclClustered, PsclClusteredConfig, _texture, majority_purity
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.views import partner_patches

from .test_pscl_simclr import draws, make_views, nt_xent


def blobs(centres: Tensor, each: int, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    labels = torch.arange(len(centres)).repeat_interleave(each)[
        torch.randperm(len(centres) * each, generator=random)
    ]
    return centres[labels] + noise * torch.randn((len(labels), centres.shape[1]), generator=random), labels


def test_separable_features_are_recovered() -> None:
    centres = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [3, 2, 0], [0, 0, 4]])
    vectors, labels = blobs(centres, 40)
    clusters = Clusters(5, 3, 0.9)
    assert not clusters.known
    clusters.start(vectors, torch.ones(3))
    assert clusters.known
    assert clusters.share.tolist() == pytest.approx([0.2] * 5)
    found, margin = nearest(vectors, clusters.moments, torch.ones(3))
    pairs = {(int(a), int(b)) for a, b in zip(found, labels, strict=True)}
    assert len(pairs) == 5, "one cluster, one blob"
    assert float(margin.min()) > 0.7
    order = [
        min(range(5), key=lambda i: float((clusters.moments.centres[j] - centres[i]).norm()))
        for j in range(5)
    ]
    assert sorted(order) == list(range(5))
    assert float((clusters.moments.centres - centres[order]).abs().max()) < 0.05


def test_moments_equal_loops() -> None:
    vectors = torch.randn((30, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(-1, 3, (30,), generator=torch.Generator().manual_seed(1))
    vectors[labels < 0] = math.nan
    moments = Moments.of(vectors, labels, 4)
    for cluster in range(3):
        members = vectors[labels == cluster].double()
        assert float(moments.share[cluster]) == len(members)
        torch.testing.assert_close(moments.centres[cluster], members.mean(dim=0))
        torch.testing.assert_close(moments.variance[cluster], members.var(dim=0, correction=0))
    assert float(moments.share[3]) == 0
    assert moments.centres[3].tolist() == [0.0] * 4


@pytest.mark.parametrize("vectors", [torch.ones(7, 3), torch.zeros(7, 3), torch.tensor([[1.0, 2.0, 3.0]])])
def test_constant_features_and_fewer_vectors_than_clusters(vectors: Tensor) -> None:
    clusters = Clusters(4, 3, 0.5)
    clusters.start(vectors, torch.ones(3))
    for _ in range(3):
        label, margin = nearest(vectors, clusters.moments, torch.ones(3))
        assert bool(margin.isfinite().all())
        assert not bool(clearest(label, margin, 1.0).any()), (
            "equal vectors are confident members of no cluster"
        )
        clusters.follow(Moments.of(vectors, label, 4))
        clusters.revive(torch.ones(3))
        assert bool(clusters.moments.centres.isfinite().all())
        assert float(clusters.share.sum()) == pytest.approx(1.0)


def test_more_clusters_than_distinct_vectors_give_each_its_own() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]).repeat(6, 1)
    clusters = Clusters(5, 2, 0.5)
    clusters.start(vectors, torch.ones(2))
    label, _ = nearest(vectors, clusters.moments, torch.ones(2))
    assert len(set(label[:3].tolist())) == 3
    assert torch.equal(label, label[:3].repeat(6))


def test_ties_go_to_the_first_and_have_no_margin() -> None:
    clusters = members([1.0, 0.0], [-1.0, 0.0], [1.0, 0.0])
    label, margin = nearest(torch.tensor([[0.0, 3.0], [2.0, 0.0], [-1.0, 0.0]]), clusters, torch.ones(2))
    assert label.tolist() == [0, 0, 1]
    assert margin.tolist() == [0.0, 0.0, 1.0]
    assert clearest(label, margin, 1.0).tolist() == [False, False, True]


def test_empty_clusters_get_no_members_and_scaled_axes_count_less() -> None:
    clusters = members([4.0, 0.0], [0.0, 3.0], [9.0, 9.0])
    empty = Moments(torch.tensor([1.0, 1.0, 0.0]), *clusters[1:])
    vectors = torch.tensor([[9.0, 9.0], [3.0, 3.0]])
    assert nearest(vectors, clusters, torch.ones(2))[0].tolist() == [2, 1]
    assert nearest(vectors, empty, torch.ones(2))[0].tolist() == [0, 1]
    assert nearest(vectors, empty, torch.tensor([1.0, 0.0]))[0].tolist() == [0, 0]
    alone = Moments(torch.tensor([0.0, 1.0, 0.0]), *clusters[1:])
    label, margin = nearest(vectors, alone, torch.ones(2))
    assert (label.tolist(), margin.tolist()) == ([1, 1], [0.0, 0.0])


def members(*centres: list[float]) -> Moments:
    """Clusters with one member each."""
    vectors = torch.tensor(centres)
    return Moments.of(vectors, torch.arange(len(vectors)), len(vectors))


def test_the_largest_margins_of_each_cluster_are_taken() -> None:
    random = torch.Generator().manual_seed(0)
    margin = torch.randperm(100, generator=random) / 100 + 0.001
    labels = torch.randint(0, 3, (100,), generator=random)
    labels[5] = 4
    for share in (0.25, 0.5, 1.0):
        taken = clearest(labels, margin, share)
        assert bool(taken[5]), "a single member has the largest margin"
        for cluster in range(3):
            own = labels == cluster
            assert int(taken[own].sum()) == math.ceil(share * int(own.sum()))
            if share < 1:
                assert float(margin[own & taken].min()) > float(margin[own & ~taken].max())


def test_moving_averages_and_replacement_of_lost_clusters() -> None:
    clusters = Clusters(2, 1, 0.75)
    clusters.follow(Moments.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), 2))
    clusters.follow(Moments.of(torch.tensor([[8.0], [4.0]]), torch.tensor([0, 1]), 2))
    assert clusters.moments.centres.flatten().tolist() == pytest.approx([2.0, 4.0])
    lost = Moments.of(torch.tensor([[0.0], [6.0]]), torch.tensor([0, 0]), 2)
    shares = []
    while len(shares) < 30 and (not shares or shares[-1] < 0.4):
        clusters.follow(lost)
        clusters.revive(torch.ones(1))
        shares.append(float(clusters.share[1]))
    assert 0.005 <= shares[-2] < 0.01, "unchanged above a hundredth of an equal share"
    assert shares[-1] == pytest.approx(0.5, abs=0.01)
    low, high = clusters.moments.centres.flatten().tolist()
    assert low == pytest.approx(0.0, abs=0.2)
    assert high == pytest.approx(6.0, abs=0.2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(0, 4))
def test_parts_of_a_batch_add_up(count: int, width: int, clusters: int, cut: int) -> None:
    vectors = torch.randn((count, width), generator=torch.Generator().manual_seed(count))
    labels = torch.randint(-1, clusters, (count,), generator=torch.Generator().manual_seed(width))
    whole = Moments.of(vectors, labels, clusters)
    parts = (
        Moments.of(vectors[:cut], labels[:cut], clusters),
        Moments.of(vectors[cut:], labels[cut:], clusters),
    )
    for a, b, c in zip(whole, *parts, strict=True):
        torch.testing.assert_close(a, b + c)


def make_method(**changes: object) -> PsclClustered:
    torch.manual_seed(0)
    values = {
        "templates_per_class": 2,
        "projection": 16,
        "hidden": 16,
        "clusters": 3,
        "patches_per_image": 200,
    }
    config = PsclClusteredConfig.model_validate({**values, **changes})
    return PsclClustered(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting())


def step(method: PsclClustered, views: Views, number: int, progress: float) -> Tensor:
    output = method(views, draws(number), True)
    method.after_step(progress)
    return output.loss


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_loss_equals_the_oracle(progress: float) -> None:
    views, method = make_views(4, 0), make_method(scale_weights=(1.0, 0.5, 2.0))
    method.after_step(progress)
    output = method(views, draws(7), True)
    query, key = method.trunk(views.query), method.trunk(views.key)
    losses = []
    for scale, sample in enumerate(method.sample_patches(views, key, draws(7))):
        width = key.scales[scale].shape[3]
        partners = partner_patches(
            views.geometry, sample.key_patches.clamp_min(0), *key.scales[scale].shape[2:]
        )
        q, k, classes = [], [], []
        for image, template in sample.valid.nonzero().tolist():
            patch, partner = int(sample.key_patches[image, template]), int(partners[image, template])
            head = method.patch_heads[scale]
            q.append(head(query.scales[scale][image, :, partner // width, partner % width]))
            k.append(head(key.scales[scale][image, :, patch // width, patch % width]))
            classes.append(int(sample.classes[template]))
        assert len(set(classes)) > 1
        losses.append(nt_xent(torch.stack(q).detach(), torch.stack(k).detach(), classes, 0.5))
        assert float(output.terms[f"scale{scale}/loss"]) == pytest.approx(losses[-1], rel=1e-4)
    patch = (1.0 * losses[0] + 0.5 * losses[1] + 2.0 * losses[2]) / 3
    expected = 0.3 * float(output.terms["image/loss"]) + 0.7 * patch
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_phases_of_different_level_are_found_without_any_mask() -> None:
    views, method = make_views(6, 0), make_method()
    assert method.class_names == ("cluster 1", "cluster 2", "cluster 3")
    purity = {}
    for number in range(10):
        output = method(views, draws(number), True)
        method.after_step(number / 10)
        purity = {key: float(value) for key, value in output.terms.items() if key.endswith("purity")}
    assert purity["scale2/purity"] > 0.9
    assert purity["scale1/purity"] > 0.9


def test_masks_do_not_affect_the_loss() -> None:
    first, second = make_views(4, 0), make_views(4, 0)
    second.labels.random_(0, 3)
    a, b = make_method(), make_method()
    for number in range(3):
        assert torch.equal(step(a, first, number, 0.5), step(b, second, number, 0.5))


def test_sampled_patches_are_of_their_cluster_distinct_and_paired() -> None:
    views, method = make_views(4, 0), make_method(templates_per_class=3)
    key = method.trunk(views.key)
    samples = method.sample_patches(views, key, draws(0))
    labels = method._pixel_labels(views, key, _texture(views.key))
    assert 0.5 <= float((labels >= 0).float().mean()) < 0.51
    fine = samples[-1]
    for image in range(4):
        taken = fine.key_patches[image][fine.valid[image]].tolist()
        assert len(taken) == len(set(taken)) > 0
        assert labels[image].flatten()[taken].tolist() == fine.classes[fine.valid[image]].tolist()
    for sample in samples:
        assert bool((sample.shares[sample.valid] >= 0.95).all())
        assert bool((sample.shares[~sample.valid] == 0).all())


def test_the_weight_of_projections_rises() -> None:
    method = make_method(projection_weight=4.0)
    scales = []
    for progress in (0.0, 0.25, 1.0):
        method.after_step(progress)
        scales.append(method._scale)
    assert bool((torch.stack(scales)[:, :4] == 1).all()), "descriptors always count"
    assert [set(scale[4:].tolist()) for scale in scales] == [{0.0}, {1.0}, {2.0}]


class Handed(torch.nn.Module):
    """A head that projects to a direction: the map contains its angle."""

    def forward(self, patches: Tensor) -> Tensor:
        angle = patches[..., :1]
        return torch.cat(
            (angle.cos(), angle.sin(), torch.zeros_like(angle).expand(*patches.shape[:-1], 14)), -1
        )


def labels_of_angles(angles: Tensor) -> Tensor:
    """Clusters of noise images with these angles as projections, (4, h, w)."""
    views, method = (
        make_views(4, 0),
        make_method(projection_weight=100.0, clusters=2, memory=0.0, confident=1.0),
    )
    views.key.copy_(torch.rand(views.key.shape, generator=torch.Generator().manual_seed(0)))
    method.patch_heads[-1] = Handed()
    key = method.trunk(views.key)
    maps = angles.unsqueeze(1).expand(-1, key.scales[-1].shape[1], -1, -1)
    key = key._replace(scales=(*key.scales[:-1], maps))
    for progress in (0.5, 1.0, 1.0, 1.0):
        method._stage(method._observe(views, key, draws(0), _texture(views.key)))
        method.after_step(progress)
    return method._pixel_labels(views, key, _texture(views.key))


def test_projections_separate_clusters_with_equal_texture() -> None:
    angles = torch.zeros(4, 32, 40)
    angles[:2, :, 20:] = 3.0
    angles[2:, :, :20] = 3.0
    labels = labels_of_angles(angles)
    found = [labels[angles == value] for value in (0.0, 3.0)]
    # The means by position are blurred near the boundary.
    assert [float((part == part.mode().values).float().mean()) > 0.9 for part in found] == [True, True]
    assert int(found[0].mode().values) != int(found[1].mode().values)


def test_border_and_centre_of_the_window_are_not_clusters() -> None:
    angles = torch.full((4, 32, 40), 3.0)
    angles[:, 4:-4, 5:-5] = 0.0
    labels = labels_of_angles(angles)
    rim = labels[angles == 3.0].float().mean(), labels[angles == 0.0].float().mean()
    assert abs(float(rim[0] - rim[1])) < 0.35, "border and centre have both clusters"


@pytest.mark.parametrize("side", ["left", "top"])
def test_a_side_of_the_window_is_not_a_cluster(side: str) -> None:
    angles = torch.zeros(4, 32, 40)
    if side == "left":
        angles[:, :, :10] = 3.0
    else:
        angles[:, :8] = 3.0
    labels = labels_of_angles(angles)
    parts = labels[angles == 3.0].float().mean(), labels[angles == 0.0].float().mean()
    assert abs(float(parts[0] - parts[1])) < 0.35, "both sides have both clusters"


def test_a_step_replaces_a_cluster_without_members() -> None:
    views, method = make_views(4, 0), make_method()
    step(method, views, 0, 0.1)
    moments = method.clusters.moments
    empty = torch.tensor([0.0, 1.0, 1.0]).double()
    method.clusters.set(Moments(*(part * empty.view(-1, *(1,) * (part.ndim - 1)) for part in moments)))
    assert float(method.clusters.share[0]) == 0
    step(method, views, 1, 0.2)
    assert float(method.clusters.share.min()) > 0.01


def test_everything_is_in_the_state() -> None:
    views, method, other = make_views(4, 0), make_method(), make_method()
    for number, progress in enumerate((0.1, 0.2, 0.6)):
        step(method, views, number, progress)
    other.load_state_dict(method.state_dict())
    assert torch.equal(step(method, views, 5, 0.7), step(other, views, 5, 0.7))
    for a, b in zip(method.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_image_gives_no_patches_and_no_error() -> None:
    views, method = make_views(3, 0), make_method()
    views.key.fill_(0.5)
    output = method(views, draws(0), True)
    assert float(output.terms["scale2/loss"]) == 0
    assert bool(output.loss.isfinite())
    output.loss.backward()
    method.after_step(0.5)


def test_an_empty_image_among_others_gives_no_patches() -> None:
    views, method = make_views(3, 0), make_method()
    for step in range(3):
        method(views, draws(step))
        method.after_step((step + 1) / 10)
    views.key[1] = 0.5
    for sample in method.sample_patches(views, method.trunk(views.key), draws(3)):
        assert not bool(sample.valid[1].any())
        assert bool(sample.valid[[0, 2]].any())


def test_majority_purity_counts_by_hand() -> None:
    views, method = make_views(4, 0), make_method()
    views.labels[3] = 255
    sample = method.sample_patches(views, method.trunk(views.key), draws(0))[1]
    height, width = 16, 20
    found = majority_purity(views, sample, height, width)
    assert math.isnan(float(found[3]))
    shown = patch_labels(views, sample.key_patches.clamp_min(0), height, width)
    for image in range(3):
        hits = 0
        for cluster in range(3):
            chosen = shown[image][(sample.classes == cluster) & sample.valid[image]].tolist()
            hits += max((chosen.count(c) for c in set(chosen)), default=0)
        assert float(found[image]) == pytest.approx(hits / int(sample.valid[image].sum()))
