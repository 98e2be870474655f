"""Archives of micrographs: HDF5 format, ingest, reading, checks and synthesis."""

from pscl_hpc.archive.format import IGNORE_INDEX, Collection, ImageRecord, Window
from pscl_hpc.archive.reader import Archive, is_archive
from pscl_hpc.archive.windows import epoch_order
from pscl_hpc.archive.writer import ShardWriter

__all__ = [
    "IGNORE_INDEX",
    "Archive",
    "Collection",
    "ImageRecord",
    "ShardWriter",
    "Window",
    "epoch_order",
    "is_archive",
]
