"""The error of a file that cannot be packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Unreadable(Exception):
    """A file cannot be packed; the message is the reason without the file name. Other files are packed."""


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Raise :class:`Unreadable` for any exception of a decoder."""
    try:
        yield
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable(f"the {what} does not fit in memory; save it as a tiled TIFF") from error
    except Exception as error:
        reason = str(error).split("\n")[0].strip() or type(error).__name__
        raise Unreadable(f"damaged {what} ({reason})") from error
