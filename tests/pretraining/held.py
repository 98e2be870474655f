"""The console command, which waits after the step in the file ``RUN.hold`` beside the run folder while the file exists.

So a test disturbs ranks at a known step, however late it looks.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from pscl_hpc.cli.main import main
from pscl_hpc.training import Loop

step = Loop.step


def held(self: Loop, *arguments: Any, **options: Any) -> dict[str, float]:
    hold = self.folder.path.with_suffix(".hold")
    while hold.exists() and self.position.step >= int(hold.read_text() or 0):
        time.sleep(0.02)
    return step(self, *arguments, **options)


if __name__ == "__main__":
    Loop.step = held  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
