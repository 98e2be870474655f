"""Heads: what they learn, that they repeat, and their file."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pscl_hpc.classifiers import (
    CLASSIFIER_FILE,
    FEATURES,
    HEADS,
    ClassifierCard,
    Head,
    PixelClassifier,
    Samples,
    load_classifier,
)
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import torch_generator

SMALL = {
    "mlp": {"steps": 150, "hidden": [16]},
    "linear": {"steps": 150, "lr": 0.03},
    "knn": {"neighbours": 5},
    "forest": {"trees": 10},
    "boosting": {"trees": 10},
}
CARD = ClassifierCard(("matrix", "carbide", "void"), 0, (), (0, 2))


def samples(count: int = 600, features: int = 9, seed: int = 0) -> Samples:
    """Two classes that a plane separates, with some noise."""
    values = torch.randn(count, features, generator=torch_generator(seed, "samples"))
    labels = (values[:, 0] + 0.5 * values[:, 1] > 0).long()
    return Samples(values, labels, torch.ones(count), 2)


def fitted(name: str, seed: int = 1, **keys: object) -> Head:
    config = HEADS.config(name).model_validate({"name": name, **SMALL[name], **keys})
    head = HEADS.implementation(config)(config, 9, 2)
    steps = [step for step, _ in head.fit(samples(), seed)]
    assert steps == sorted(set(steps))
    return head


@pytest.mark.parametrize("name", HEADS.names)
def test_a_head_learns_repeats_and_is_restored(name: str) -> None:
    head, again = fitted(name), fitted(name)
    test = samples(seed=5)
    found = head.probabilities(test.features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))
    assert (found.argmax(dim=1) == test.labels).float().mean() > 0.85
    assert torch.equal(again.probabilities(test.features), found)
    restored = HEADS.implementation(head.config)(head.config, 9, 2)
    restored.load_state(head.state())
    assert torch.equal(restored.probabilities(test.features), found)


@pytest.mark.parametrize("name", HEADS.names)
def test_weights_move_the_decision(name: str) -> None:
    torch.manual_seed(0)
    values = torch.randn(400, 9)
    labels = (torch.rand(400) < 0.5).long()
    shares = []
    for weight in (0.1, 10.0):
        config = HEADS.config(name).model_validate({"name": name, **SMALL[name]})
        head = HEADS.implementation(config)(config, 9, 2)
        weights = torch.where(labels == 1, weight, 1.0)
        list(head.fit(Samples(values, labels, weights / weights.mean(), 2), 0))
        shares.append((head.probabilities(torch.randn(400, 9)).argmax(dim=1) == 1).float().mean())
    assert shares[0] < 0.3
    assert shares[1] > 0.7


def classifier(name: str) -> PixelClassifier:
    config = FEATURES.config("filters").model_validate({"sigmas": [1.0], "medians": [3]})
    head = HEADS.config(name).model_validate({"name": name, **SMALL[name]})
    found = PixelClassifier(FEATURES.implementation(config)(config), head, CARD)
    data = samples()
    list(found.fit(data._replace(features=5 * data.features + 3), 1))
    return found


@pytest.mark.parametrize("name", HEADS.names)
def test_a_file_restores_the_classifier(name: str, tmp_path: Path) -> None:
    saved = classifier(name)
    saved.save(tmp_path / CLASSIFIER_FILE)
    loaded = load_classifier(tmp_path)
    assert loaded.card == CARD
    values = 5 * samples(seed=2).features + 3
    assert torch.equal(loaded.probabilities(values), saved.probabilities(values))


def test_a_constant_feature_is_not_amplified() -> None:
    config = FEATURES.config("filters").model_validate({"sigmas": [1.0], "medians": [3]})
    found = PixelClassifier(FEATURES.implementation(config)(config), HEADS.default_config(), CARD)
    data = samples()
    data.features[:, 4] = 0.25
    list(found.fit(data, 1))
    assert found.probabilities(data.features).isfinite().all()


class Harmful:
    """Would run code where a file is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("name", ["forest", "boosting"])
def test_only_trees_are_loaded(name: str) -> None:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    head = fitted(name)
    others = [
        skops.io.dumps({"a": Path("x")}),
        skops.io.dumps(LogisticRegression().fit([[0.0], [1.0]], [0, 1])),
        pickle.dumps(Harmful()),
    ]
    for data in others:
        fresh = HEADS.implementation(head.config)(head.config, 9, 2)
        with pytest.raises((ValueError, KeyError, OSError)):
            fresh.load_state({"skops": torch.frombuffer(bytearray(data), dtype=torch.uint8)})
    # Trees of another number of features.
    fresh = HEADS.implementation(head.config)(head.config, 8, 2)
    with pytest.raises(ValueError, match="9 features"):
        fresh.load_state(head.state())


@pytest.mark.parametrize("damage", ["missing", "no header", "cut", "other shape"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / CLASSIFIER_FILE
    saved = classifier("knn")
    saved.save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "no header":
        save_file({"mean": torch.zeros(3)}, path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        saved._mean = torch.zeros(3)
        saved.save(path)
    with pytest.raises(UserError, match=CLASSIFIER_FILE.replace(".", r"\.")):
        load_classifier(tmp_path)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    config = HEADS.config("forest").model_validate({"name": "forest"})
    with pytest.raises(UserError, match=r"pscl-hpc\[classifier\]"):
        HEADS.implementation(config)(config, 9, 2)
