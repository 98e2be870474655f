"""Classifiers of single pixels: feature sets (one module each), heads (one module each), and their file.

They are what a lab tries before it trains a network: seconds for an image, and the bar that a training has to clear.
"""

from pscl_hpc.classifiers.cache import FeatureCache, FeatureReader
from pscl_hpc.classifiers.features.base import FEATURES, AnyFeatures, FeatureSet, PixelMaps
from pscl_hpc.classifiers.heads.base import HEADS, AnyHead, Head, Samples
from pscl_hpc.classifiers.pixels import CLASSIFIER_FILE, ClassifierCard, PixelClassifier, load_classifier

__all__ = [
    "CLASSIFIER_FILE",
    "FEATURES",
    "HEADS",
    "AnyFeatures",
    "AnyHead",
    "ClassifierCard",
    "FeatureCache",
    "FeatureReader",
    "FeatureSet",
    "Head",
    "PixelClassifier",
    "PixelMaps",
    "Samples",
    "load_classifier",
]
