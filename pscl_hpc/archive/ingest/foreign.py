"""Kinds of image files that are not read, and what to do with them."""

from __future__ import annotations

from importlib.util import find_spec

NOT_READ = (
    ".czi", ".dm3", ".dm4", ".ser", ".emi", ".emd", ".lif", ".lsm", ".nd2", ".oib", ".oif", ".vsi",
    ".ndpi", ".scn", ".mrc", ".gif", ".webp", ".jp2", ".j2k", ".jxl", ".heic", ".heif", ".avif",
    ".ome", ".npy", ".npz", ".mat", ".raw", ".dcm", ".nii", ".nrrd", ".mha",
    ".exr", ".psd", ".xcf", ".pgm", ".ppm", ".pnm", ".pbm", ".tga", ".roi", ".zip",
)  # fmt: skip
"""Endings of image and annotation files that are not read, some of them only without an extra."""
_EXTRAS = {
    ".dm3": "microscopes", ".dm4": "microscopes", ".ser": "microscopes", ".czi": "zeiss", ".roi": "imagej",
    ".zip": "imagej",
}  # fmt: skip
_EXPORT = "export images as TIFF or PNG, and masks as PNG or TIFF of class indices"
_ANNOTATIONS = "LabelMe or COCO JSON, CVAT XML, or masks as PNG or TIFF of class indices"
_HOW = {
    ".czi": "export the images as TIFF in ZEN (Image Export)",
    ".zip": "unpack it if it is an archive of images",
}


def reason(suffix: str) -> str:
    """Why files of a kind are not read, and what to do."""
    extra = _EXTRAS.get(suffix)
    if suffix in (".json", ".xml"):
        return f"annotations in a format that is not read; export {_ANNOTATIONS}"
    if extra == "imagej" and find_spec("roifile"):
        return f"{suffix} files are read as lists of ImageJ ROIs only; {_HOW.get(suffix, _EXPORT)}"
    if extra is None:
        return f"{suffix} files are not supported; {_EXPORT}"
    return f"{suffix} files are read with pip install 'pscl-hpc[{extra}]'; or {_HOW.get(suffix, _EXPORT)}"
