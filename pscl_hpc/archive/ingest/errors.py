"""Why one file was not packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Unreadable(Exception):
    """One file cannot be packed; the message is the reason without the file name. The rest is packed."""


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises over a damaged file into :class:`Unreadable`."""
    try:
        yield
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable(f"the {what} does not fit into memory; save it as a tiled TIFF") from error
    except Exception as error:
        reason = str(error).split("\n")[0].strip() or type(error).__name__
        raise Unreadable(f"damaged {what} ({reason})") from error
