"""Whether the index of a file that is not trusted matches its collections and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.blocks import FlatBlock, Pool
from pscl_hpc.archive.format import MASK_POOL, PACKED_TILES, POOLS, Collection
from pscl_hpc.archive.index import NAMED, Index, ReadAt, decode_text
from pscl_hpc.archive.options import MAX_SIDE, options_from_json

Bools = npt.NDArray[np.bool_]


def verify(
    index: Index, collections: Mapping[str, Collection], pools: Mapping[str, Pool], read_at: ReadAt
) -> None:
    """ValueError that names the first image whose record cannot be right."""
    names = {column: [decode_text(name) for name in index.names[column]] for column in ("dataset", "pool")}
    for name in index.names["ingest"]:
        options_from_json(decode_text(name))
    for name in names["dataset"]:
        if name not in collections:
            raise ValueError(f"the collection of the images {name}/... is not in the file")
    for name in names["pool"]:
        if name not in POOLS or name not in pools:
            raise ValueError(f"the tile pool {name!r} is not in the file")
    columns = ("block", "start", "mask_block", "mask_start", "height", "width", "id")
    values = dict(zip((*NAMED, *columns), index.columns(read_at, *NAMED, *columns), strict=True))
    ids = values["id"]

    def require(good: Bools, problem: str) -> None:
        if not good.all():
            place = int(np.argmin(good))
            size = f"{values['height'][place]} x {values['width'][place]}"
            raise ValueError(problem.format(id=decode_text(ids[place]), size=size))

    for column in NAMED:
        codes = values[column]
        require((codes >= 0) & (codes < len(index.names[column])), f"the {column} of {{id}} has no name")
    require(
        np.append(ids[1:] > ids[:-1], np.full(min(1, len(ids)), True)),
        "image id {id!r} appears twice or is not in order",
    )
    prefixes = np.char.add(index.names["dataset"], b"/")
    require(np.strings.startswith(ids, prefixes[values["dataset"]]), "{id} does not begin with its dataset")
    height, width = values["height"], values["width"]
    require(
        (height >= 1) & (height <= MAX_SIDE) & (width >= 1) & (width <= MAX_SIDE), "{id} has the size {size}"
    )
    for code, name in enumerate(names["pool"]):
        here = values["pool"] == code
        inside = _inside(pools[name], values["block"], values["start"], height, width)
        require(~here | inside, "the tiles of {id} are not in the file")
    masked = values["mask_block"] != -1
    if masked.any():
        if MASK_POOL not in pools:
            raise ValueError("the masks are not in the file")
        inside = _inside(pools[MASK_POOL], values["mask_block"], values["mask_start"], height, width)
        require(~masked | inside, "the mask of {id} is not in the file")


def _inside(pool: Pool, block: Any, start: Any, height: Any, width: Any) -> Bools:
    """Whether each image is inside a block of the pool."""
    counts = np.array([found.count for found in pool.blocks] or [0], np.int64)
    # 0 for flat blocks
    sides = np.array([0 if isinstance(b, FlatBlock) else b.side for b in pool.blocks] or [0], np.int64)
    known = (block >= 0) & (block < len(pool.blocks))
    place = np.where(known, block, 0)
    h, w = height.astype(np.int64), width.astype(np.int64)
    side = np.where(np.maximum(h, w) <= PACKED_TILES[0], *PACKED_TILES)
    tiles = -(-h // side) * -(-w // side)
    need = np.where(sides[place] == 0, h * w * pool.channels, tiles)
    fits = (sides[place] == 0) | (sides[place] == side)
    found: Bools = known & fits & (start >= 0) & (start <= counts[place] - need)
    return found
