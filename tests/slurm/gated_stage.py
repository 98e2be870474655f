"""The real pretraining, which waits after the step in the file ``gate`` of the run folder while that file exists.

So a test disturbs a job at a known step. Jobs import this file by its name.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pscl_hpc.pretraining import pretrain as real
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.training import Loop, stop_reason


def pretrain(config: PretrainConfig) -> None:
    gate = Path(config.run) / "gate"
    step = Loop.step

    def gated(self: Loop, *arguments: Any, **options: Any) -> dict[str, float]:
        while stop_reason() is None and gate.exists() and self.position.step >= int(gate.read_text()):
            time.sleep(0.05)
        return step(self, *arguments, **options)

    Loop.step = gated  # type: ignore[method-assign]
    real(config)


def die(config: PretrainConfig) -> None:
    """Kill the process at step 3."""
    step = Loop.step

    def deadly(self: Loop, *arguments: Any, **options: Any) -> dict[str, float]:
        if self.position.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **options)

    Loop.step = deadly  # type: ignore[method-assign]
    real(config)


def die_often(config: PretrainConfig) -> None:
    """Kill the process at steps 5 and 9, once each; wait with that while the file ``gate`` exists."""
    step, run = Loop.step, Path(config.run)

    def deadly(self: Loop, *arguments: Any, **options: Any) -> dict[str, float]:
        mark = run / f"died-at-{self.position.step}"
        if self.position.step in (5, 9) and not mark.exists():
            saved = self.position.step - 1
            while (run / "gate").exists() or saved not in self.folder.checkpoints.steps():
                time.sleep(0.05)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **options)

    Loop.step = deadly  # type: ignore[method-assign]
    real(config)
