"""Which images of an archive to annotate."""

from pscl_hpc.suggestion.features import FILTERS, IMAGENET, dense_features
from pscl_hpc.suggestion.picture import draw
from pscl_hpc.suggestion.suggest import Suggestion, suggest

__all__ = [
    "FILTERS",
    "IMAGENET",
    "Suggestion",
    "dense_features",
    "draw",
    "suggest",
]
