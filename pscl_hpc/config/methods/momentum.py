"""The momentum encoder of an encoder that gives keys or targets."""

from __future__ import annotations

from typing import Literal

from pscl_hpc.config.common import Fraction, Strict


class MomentumConfig(Strict):
    """How the momentum encoder follows the trained network: ``slow = m * slow + (1 - m) * fast`` after each step."""

    start: Fraction = 0.99
    """m, at the first step. The copy lags by about 1 / (1 - m) steps: a run of a few hundred wants 0.9."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, or a half cosine from ``start`` to 1 at the last step (BYOL, section 3.3)."""
