"""pscl_hpc: a segmentation model for alloy micrographs from one annotated image."""

__version__ = "0.1.0"
