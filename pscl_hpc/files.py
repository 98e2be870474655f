"""Writing files so that a crash leaves the old or the new file, never a partial one; JSON by a schema; names."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

from pydantic import BaseModel, ValidationError

from pscl_hpc.errors import JobError, UserError

ModelT = TypeVar("ModelT", bound=BaseModel)


@contextmanager
def writing(path: Path, what: str = "it") -> Iterator[None]:
    """Around writing ``path``: turns an OSError, for example of a full disk, into a one-line error.

    Args:
        path: For the message.
        what: What is written, for the message.

    Raises:
        JobError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        raise JobError(
            f"{path}: {what} could not be written ({error.strerror or error}); free disk space there and run the same "
            "command again"
        ) from error


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def is_no_space(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a disk that is full or over quota."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Libraries in other languages only keep the text of the error.
        if getattr(error, "errno", None) in _NO_SPACE or any(
            os.strerror(number) in str(error) for number in _NO_SPACE
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace ``path`` by the file that the block writes under the temporary name it is given.

    The temporary file is in the same folder. It is synced and renamed when the block ends without an exception;
    otherwise it is removed and ``path`` stays as it was.
    """
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        move_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Rename a complete, synced file over ``target`` on the same file system, durably."""
    source.replace(target)
    sync_folder(target.parent)


def create_text(path: Path, text: str) -> bool:
    """Create ``path`` with a UTF-8 text, atomically. False, and no change, when it exists."""
    temporary = _beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links; a crash here can leave a partial file.
            return _create_directly(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _create_directly(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _beside(path: Path) -> Path:
    """A temporary file that no other process on this or another machine uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a UTF-8 text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by these bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_checked(path: Path, model: type[ModelT], advice: str) -> ModelT:
    """A JSON file as a pydantic model; UserError, which ends in ``advice``, if it is missing or damaged."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {f'key {where}: ' if where else ''}{first['msg']}; {advice}") from None


def nfc(name: str) -> str:
    """A name in Unicode NFC; macOS writes file names in NFD."""
    return normalize("NFC", name)


def readable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8, as on disks of other systems, become question marks."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def user_name() -> str:
    """The name of the user, for folders on local disks."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
