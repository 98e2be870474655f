"""The scratch folder of a build: finished parts that outlive a kill, and the lock against a second build."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pscl_hpc.archive.shard import Shard, open_shard
from pscl_hpc.archive.writer import sync
from pscl_hpc.errors import UserError

_OPTIONS = "options.json"


class Scratch:
    """``OUT.partial/`` beside an archive that is being built.

    Use as a context manager: the folder is locked inside. It is removed by :meth:`remove` alone, so whatever
    ends a build early leaves the parts for the next one.

    Raises:
        UserError: another build of the same archive is at work, or the parts there were made with other options.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        self._out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self._options = options
        self._lock: IO[str] | None = None
        self.parts: list[Shard] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some cluster filesystems are mounted without locks; a build there cannot be guarded.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                self._lock.close()
                raise UserError(f"another build of {self._out} is at work; wait for it to end") from error
        try:
            self._match_options()
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink()
            for path in sorted(self.folder.glob("part-*.h5")):
                self._take(path)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        self._lock.close()

    def next_part(self) -> Path:
        """A free name for the next part."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.h5")]
        return self.folder / f"part-{max(numbers, default=-1) + 1:06d}.h5"

    def add_part(self, path: Path) -> None:
        """Take a finished part."""
        self.parts.append(open_shard(path))

    def remove(self) -> None:
        """Delete the folder: the archive is in place."""
        shutil.rmtree(self.folder)
        sync(self.folder.absolute().parent)

    def _take(self, path: Path) -> None:
        try:
            self.add_part(path)
        except UserError:
            path.unlink()  # torn by a power failure: its images are packed again

    def _match_options(self) -> None:
        path = self.folder / _OPTIONS
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != self._options and any(self.folder.glob("part-*.h5")):
                raise UserError(
                    f"{self.folder} holds parts of a build with other options; give the same options to go on, "
                    f"or delete that folder to start over"
                )
        path.write_text(json.dumps(self._options), encoding="utf-8")
