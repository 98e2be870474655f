"""pscl_hpc: a segmentation model for alloy micrographs from one annotated image."""

import os

__version__ = "0.1.0"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # Threads of torch that wait keep their CPU for milliseconds by default. Where other programs need it too, a step takes
    # a hundred times as long (bench/results/log.md). Read when torch is imported.
    os.environ["GOMP_SPINCOUNT"] = "300"
