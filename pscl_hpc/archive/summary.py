"""The summary that ``archive info`` shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from pscl_hpc.archive.format import VERSION, ImageRecord, parse_pool
from pscl_hpc.archive.options import options_to_tree
from pscl_hpc.archive.reader import Archive


def summarise(archive: Archive) -> dict[str, Any]:
    """Size, fingerprint, storage and collections of an archive as values for JSON."""
    stored: Counter[str] = Counter()
    codecs: dict[str, dict[str, None]] = defaultdict(dict)
    for shard in archive.shards:
        for name, pool in shard.pools.items():
            stored[name] += pool.stored_bytes
            codecs[name][pool.codec.name] = None
    files = {shard.path: shard.stamp.size for shard in archive.shards}
    return {
        "path": str(archive.path),
        "version": VERSION,
        "fingerprint": archive.fingerprint,
        "images": len(archive),
        "bytes": sum(files.values()),
        "shards": len(files),
        "pools": {
            name: {
                "dtype": parse_pool(name)[0],
                "channels": parse_pool(name)[1],
                "codec": ", ".join(codecs[name]),
                "stored_bytes": stored[name],
            }
            for name in sorted(stored)
        },
        "collections": [_collection(archive, name) for name in archive.collections],
    }


def _kind(record: ImageRecord) -> str:
    return f"{record.dtype} {'colour' if record.channels == 3 else 'grey'}"


def _collection(archive: Archive, name: str) -> dict[str, Any]:
    records = archive.select(datasets=[name])
    collection = archive.collections[name]
    scales = [record.um_per_pixel for record in records if record.um_per_pixel]
    return {
        "name": name,
        "images": len(records),
        "annotated": sum(record.has_mask for record in records),
        "classes": list(collection.classes),
        "background": collection.background,
        "ignore_classes": list(collection.ignore_classes),
        "references": list(collection.references),
        "splits": dict(sorted(Counter(record.split for record in records).items())),
        "sizes": [
            {"height": height, "width": width, "images": count}
            for (height, width), count in sorted(Counter((r.height, r.width) for r in records).items())
        ],
        "pixels": dict(sorted(Counter(map(_kind, records)).items())),
        "specimens": len({record.specimen for record in records if record.specimen}),
        "production_batches": sorted({r.production_batch for r in records if r.production_batch}),
        "alloys": sorted({record.alloy for record in records if record.alloy}),
        "um_per_pixel": [min(scales), max(scales)] if scales else None,
        "packed": [
            {"options": options_to_tree(options) if options is not None else None, "images": count}
            for options, count in sorted(
                Counter(r.ingest for r in records).items(), key=lambda item: str(item[0])
            )
        ],
    }
