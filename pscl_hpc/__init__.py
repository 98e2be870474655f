"""pscl_hpc: a segmentation model for alloy micrographs from one annotated image."""

import os

__version__ = "0.1.0"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # Threads of torch that wait for others keep their CPU for milliseconds. Where other programs need it, the thread that
    # they wait for gets none, and a step takes up to a hundred times as long. Read when torch is imported.
    os.environ["GOMP_SPINCOUNT"] = "10000"
