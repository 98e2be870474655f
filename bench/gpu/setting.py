"""What every script of this folder is told: the device, the sizes, the time it may take."""

import argparse
import re
import time
from dataclasses import dataclass, field

import torch

UNFINISHED = 4
"""Exit code of a part that ran out of time; called again, it goes on where it was."""


@dataclass(frozen=True)
class Setting:
    """Device and sizes of one run. On a CPU sizes are tiny: that proves the scripts, and measures nothing."""

    device: torch.device
    seconds: float
    """Time after which no further measurement begins."""
    only: str | None = None
    """Name of the one implementation to run; all when None."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def tiny(self) -> bool:
        return self.device.type == "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes measured; Triton's interpreter computes bfloat16 products wrongly."""
        return (torch.float16, torch.float32) if self.tiny else (torch.bfloat16, torch.float16)

    @property
    def backends(self) -> tuple[str, ...]:
        return ("triton", "chunked")

    def left(self) -> float:
        """Seconds until `seconds` have passed."""
        return self.seconds - (time.monotonic() - self.begun)

    def slug(self) -> str:
        """Short name of the device for file names: h100, h200, cpu."""
        if self.tiny:
            return "cpu"
        name = torch.cuda.get_device_name()
        known = re.search(r"\b([A-Z]{1,2}\d{2,4}[A-Z]?)\b", name)
        return (known.group(1) if known else re.sub(r"\W+", "-", name)).lower()

    def command(self) -> str:
        return "bash bench/gpu.sh --dry OUT" if self.tiny else "bash bench/gpu.sh OUT"


def parse(description: str | None) -> Setting:
    """The setting that the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run, tiny sizes"
    )
    parser.add_argument(
        "--seconds", type=float, default=540.0, help="no further measurement begins after these"
    )
    parser.add_argument("--only", help="one implementation")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(3, "torch sees no CUDA device here; --device cpu makes a dry run\n")
    return Setting(torch.device(given.device), given.seconds, given.only)
