"""Procedural alloy micrographs with exact masks: three families with six production batches each.

``fields`` has the random building blocks; ``grains``, ``precipitates`` and ``particles`` make a specimen (phases,
brightness, relief); ``exposure`` is the microscope; ``generate`` makes one micrograph and ``write`` an archive of them.
"""

from pscl_hpc.archive.synthesis.generate import (
    FAMILIES,
    Micrograph,
    class_names,
    collection_name,
    production_batches,
    synthesise,
)
from pscl_hpc.archive.synthesis.write import write_synthetic_archive

__all__ = [
    "FAMILIES",
    "Micrograph",
    "class_names",
    "collection_name",
    "production_batches",
    "synthesise",
    "write_synthetic_archive",
]
