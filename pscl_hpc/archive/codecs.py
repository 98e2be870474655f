"""Tile compression: HDF5 filter pipelines, encoded and decoded without the HDF5 library.

Tiles are written and read as raw chunks, so compression runs outside HDF5's global lock and threads scale. The bytes
are those of the named HDF5 filter, so any HDF5 program that has the filter can read them. ``gzip`` and ``none`` are in
every HDF5 build, ``lzf`` in every h5py; for ``zstd`` other programs need the hdf5plugin package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import h5py
import imagecodecs
import numpy as np
import numpy.typing as npt

SHUFFLE = 2
DEFLATE = 1
LZF = 32000
ZSTD = 32015

RAW = 0xFFFFFFFF
"""Chunk filter mask of a tile that is stored uncompressed, because compression gained too little."""
_MAX_RATIO = 0.95
"""A tile that does not shrink below this share is stored uncompressed."""


@dataclass(frozen=True)
class Codec:
    """One HDF5 filter pipeline."""

    name: str
    filters: tuple[int, ...]
    """Filter ids in the order in which they are applied; ``SHUFFLE`` only for items of several bytes."""
    options: tuple[int, ...]
    """Client data of the compressing filter."""
    pack: Callable[[bytes, int], bytes]
    """(bytes, item size) -> compressed bytes."""
    unpack: Callable[[bytes, int], bytes]
    """(compressed bytes, size of the result) -> bytes."""

    def __reduce__(self) -> tuple[Callable[[str], Codec], tuple[str]]:
        # By name: data loader processes may get the open archive pickled, and functions cannot be pickled.
        return _codec_named, (self.name,)

    def filters_for(self, itemsize: int) -> tuple[int, ...]:
        return tuple(number for number in self.filters if number != SHUFFLE or itemsize > 1)

    def encode(self, tile: npt.NDArray[np.generic]) -> tuple[int, bytes]:
        """Filter mask and bytes of one C-contiguous tile."""
        raw = tile.tobytes()
        if not self.filters:
            return 0, raw
        data = raw
        if SHUFFLE in self.filters_for(tile.itemsize):
            data = _shuffle(raw, tile.itemsize)
        packed = self.pack(data, tile.itemsize)
        return (0, packed) if len(packed) < _MAX_RATIO * len(raw) else (RAW, raw)

    def decode(self, data: bytes, filter_mask: int, size: int, itemsize: int) -> bytes:
        """The ``size`` bytes of one tile; ValueError when the chunk is damaged."""
        if filter_mask == RAW or not self.filters:
            raw = data
        elif filter_mask == 0:
            try:
                raw = self.unpack(data, size)
            except Exception as error:
                raise ValueError(f"damaged {self.name} data ({error})") from error
            if len(raw) == size and SHUFFLE in self.filters_for(itemsize):
                raw = _unshuffle(raw, itemsize)
        else:
            raise ValueError(f"unknown filter mask {filter_mask:#x}")
        if len(raw) != size:
            raise ValueError(f"a tile has {len(raw)} bytes, not {size}")
        return raw


def _codec_named(name: str) -> Codec:
    return CODECS[name]


def _shuffle(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(-1, itemsize).T.tobytes()


def _unshuffle(data: bytes, itemsize: int) -> bytes:
    planes = np.frombuffer(data, np.uint8).reshape(itemsize, -1)
    items = np.empty((planes.shape[1], itemsize), np.uint8)
    for place, plane in enumerate(planes):  # four times as fast as copying the transposed array
        items[:, place] = plane
    return items.tobytes()


def _same(data: bytes, size: int) -> bytes:
    return data


_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3

_LZF_OPTIONS = (4, 261, 0)
"""(filter revision, LZF version 1.5, chunk bytes) as h5py records them; the size is filled in."""

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("none", (), (), _same, _same),
        Codec(
            "gzip",
            (SHUFFLE, DEFLATE),
            (_GZIP_LEVEL,),
            lambda data, _: bytes(imagecodecs.deflate_encode(data, level=_GZIP_LEVEL)),
            lambda data, size: bytes(imagecodecs.deflate_decode(data, out=size)),
        ),
        Codec(
            "lzf",
            (SHUFFLE, LZF),
            _LZF_OPTIONS,
            lambda data, _: bytes(imagecodecs.lzf_encode(data)),
            lambda data, size: bytes(imagecodecs.lzf_decode(data, out=size)),
        ),
        Codec(
            "zstd",
            (SHUFFLE, ZSTD),
            (_ZSTD_LEVEL,),
            lambda data, _: bytes(imagecodecs.zstd_encode(data, level=_ZSTD_LEVEL)),
            lambda data, size: bytes(imagecodecs.zstd_decode(data, out=size)),
        ),
    )
}

AUTO = "auto"
DEFAULT_CODEC = {"uint8": "none", "uint16": "gzip", "float32": "gzip"}
"""Compression of image tiles per dtype; measurements are in docs/archive.md."""
MASK_CODEC = "gzip"


def codec_for(compression: str, dtype: str, *, is_mask: bool) -> Codec:
    """The codec of a pool; ``compression`` is ``"auto"`` or a key of :data:`CODECS`."""
    if compression != AUTO and compression not in CODECS:
        raise ValueError(f"unknown compression {compression!r}; choose one of {AUTO}, {', '.join(CODECS)}")
    if compression == AUTO:
        return CODECS[MASK_CODEC if is_mask else DEFAULT_CODEC[dtype]]
    return CODECS[compression]


def create_dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], codec: Codec
) -> h5py.Dataset:
    """An empty dataset of tiles that can grow along its first axis; its HDF5 filters need not be installed."""
    tile_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, *shape[1:]))
    plist.set_obj_track_times(False)  # the same sources give the same bytes
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    for number in codec.filters_for(dtype.itemsize):
        if number == SHUFFLE:
            options: tuple[int, ...] = (dtype.itemsize,)
        elif number == LZF:
            options = (*codec.options[:2], tile_bytes)
        else:
            options = codec.options
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, options)
    space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *shape[1:]))
    kind = h5py.h5t.py_create(dtype)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))


def codec_of(dataset: h5py.Dataset) -> Codec:
    """The codec of a dataset; ValueError for an unknown filter pipeline."""
    plist = dataset.id.get_create_plist()
    filters = tuple(plist.get_filter(place)[0] for place in range(plist.get_nfilters()))
    for codec in CODECS.values():
        if codec.filters_for(dataset.dtype.itemsize) == filters:
            return codec
    raise ValueError(f"{dataset.name} uses HDF5 filters {filters}, which this version does not read")
