"""Shapes drawn on images in annotation programs: one module per file format, and their area as class indices.

A format is a function under :func:`.formats.annotation_format`; adding a module adds a format.
"""

from pscl_hpc.archive.ingest.annotations.area import fill
from pscl_hpc.archive.ingest.annotations.formats import (
    AnnotationFile,
    Drawing,
    annotation_suffixes,
    read_annotations,
)

__all__ = ["AnnotationFile", "Drawing", "annotation_suffixes", "fill", "read_annotations"]
