"""Random forest and gradient boosting of scikit-learn (extra ``classifier``).

They are stored by skops, which builds objects of listed types only and runs no code of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pscl_hpc.classifiers.heads.base import HEADS, Head, HeadConfig, Samples
from pscl_hpc.config import Count, Positive
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import derive_seed

_BATCH = 1 << 16
"""Pixels that are classified at once."""
_TRUSTED = ("sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor")
"""Types of the trees, which skops does not trust by itself."""


class ForestConfig(HeadConfig):
    """A random forest."""

    name: Literal["forest"] = "forest"
    display_name: ClassVar[str] = "random forest"
    trees: Count = 100
    """Number of trees."""
    leaf: Count = 4
    """Pixels, at least, in a leaf."""


class BoostingConfig(HeadConfig):
    """Gradient boosting of trees over histograms of the features."""

    name: Literal["boosting"] = "boosting"
    display_name: ClassVar[str] = "gradient boosting"
    trees: Count = 100
    """Boosting rounds; each adds a tree for every class."""
    leaves: Count = 31
    """Leaves of a tree, at most."""
    lr: Positive = 0.1
    """Share of each tree that is added."""


@HEADS.register(ForestConfig)
class Trees(Head):
    """The heads of this module.

    Raises:
        UserError: scikit-learn or skops is not installed.
    """

    config: ForestConfig | BoostingConfig

    def __init__(self, config: ForestConfig | BoostingConfig, features: int, classes: int) -> None:
        self.config = config
        self._shape = features, classes
        self._model: Any = None
        _packages(config.name)

    def fit(self, samples: Samples, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        ensemble, _ = _packages(self.config.name)
        state = derive_seed(seed, "head") % (1 << 32)
        config = self.config
        if isinstance(config, ForestConfig):
            # One thread: several would add the votes of the trees in a random order.
            self._model = ensemble.RandomForestClassifier(
                config.trees, min_samples_leaf=config.leaf, random_state=state, n_jobs=1
            )
        else:
            self._model = ensemble.HistGradientBoostingClassifier(
                max_iter=config.trees,
                max_leaf_nodes=max(2, config.leaves),
                learning_rate=config.lr,
                early_stopping=False,
                random_state=state,
            )
        features, labels, weights = (part.numpy() for part in samples[:3])
        self._model.fit(features, labels, sample_weight=weights)
        yield config.trees, {}

    def probabilities(self, features: Tensor) -> Tensor:
        parts = [self._model.predict_proba(part.numpy()) for part in torch.split(features, _BATCH)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    def state(self) -> dict[str, Tensor]:
        _, skops = _packages(self.config.name)
        return {"skops": torch.frombuffer(bytearray(skops.dumps(self._model)), dtype=torch.uint8)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        ensemble, skops = _packages(self.config.name)
        data = state["skops"].numpy().tobytes()
        try:
            model = skops.loads(data, trusted=list(_TRUSTED))
        except (BadZipFile, LookupError, TypeError, AttributeError) as error:  # TypeError: not trusted
            raise ValueError(f"its trees cannot be read: {error}") from None
        name = (
            "RandomForestClassifier"
            if isinstance(self.config, ForestConfig)
            else "HistGradientBoostingClassifier"
        )
        found = getattr(model, "n_features_in_", None), len(getattr(model, "classes_", ()))
        if type(model) is not getattr(ensemble, name) or found != self._shape:
            raise ValueError(
                f"it holds a {type(model).__name__} of {found[0]} features and {found[1]} classes"
            )
        self._model = model


HEADS.register(BoostingConfig)(Trees)


def _packages(name: str) -> tuple[Any, Any]:
    """The modules ``sklearn.ensemble`` and ``skops.io``."""
    try:
        import skops.io
        from sklearn import ensemble
    except ImportError:
        raise UserError(
            f"head.name={name} needs scikit-learn and skops; pip install 'pscl-hpc[classifier]', or choose head.name=mlp"
        ) from None
    return ensemble, skops.io
