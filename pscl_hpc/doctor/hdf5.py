"""The HDF5 library, its filters, and the image readers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

from pscl_hpc.doctor.findings import Finding

PLUGIN_FILTERS = {"zstd": 32015}
"""Registered numbers of the filters of hdf5plugin that archives use."""


def library() -> Iterator[Finding]:
    """h5py, its HDF5 library, and the variable that controls file locking."""
    try:
        import h5py
    except Exception as error:  # ValueError if it was built for another numpy
        yield Finding("problem", f"h5py cannot be imported: {error}", "pip install h5py")
        return
    text = f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}"
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    yield Finding("ok", f"{text}, HDF5_USE_FILE_LOCKING={setting}" if setting else text)


def filters() -> Iterator[Finding]:
    """Compression filters of archives: the portable ones, and those of hdf5plugin."""
    from h5py import h5z

    portable = {"gzip": h5z.FILTER_DEFLATE, "lzf": h5z.FILTER_LZF, "shuffle": h5z.FILTER_SHUFFLE}
    missing = [name for name, number in portable.items() if not h5z.filter_avail(number)]
    if "gzip" in missing:
        yield Finding("problem", "gzip is missing from this HDF5", "pip install h5py from its wheel")
    elif missing:
        yield Finding("note", f"{', '.join(missing)} missing from this HDF5")
    if importlib.util.find_spec("hdf5plugin") is not None:
        import hdf5plugin  # noqa: F401  (registers its filters)
    extra = [name for name, number in PLUGIN_FILTERS.items() if h5z.filter_avail(number)]
    present = [name for name in portable if name not in missing]
    yield Finding("ok", ", ".join([*present, *extra]))


def images() -> Iterator[Finding]:
    """Readers of micrographs."""
    found, absent = [], []
    for package in ("tifffile", "imagecodecs", "pillow"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    if absent:
        yield Finding("problem", f"{', '.join(absent)} missing", f"pip install {' '.join(absent)}")
    else:
        yield Finding("ok", ", ".join(found))
