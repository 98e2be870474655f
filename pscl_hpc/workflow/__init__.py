"""From a folder and one mask to numbers: the commands of the package one after another."""

from pscl_hpc.workflow.request import Request
from pscl_hpc.workflow.segment import segment, suggest_annotation

__all__ = ["Request", "segment", "suggest_annotation"]
