"""Segmentation: fine-tuning or a pixel classifier on a few annotated images, scores, predictions."""

from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.classify import train_classifier
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, evaluate
from pscl_hpc.segmentation.finetune import finetune
from pscl_hpc.segmentation.metrics import ConfusionMatrix, Scores
from pscl_hpc.segmentation.predict import PredictReport, predict

__all__ = [
    "EVALUATION_FILE",
    "ClassList",
    "ConfusionMatrix",
    "PredictReport",
    "Scores",
    "evaluate",
    "finetune",
    "predict",
    "train_classifier",
]
