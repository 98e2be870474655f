"""A pretraining that is measured in a moment."""

from __future__ import annotations

from pscl_hpc.pretraining.config import PretrainConfig


def tiny(**changes: object) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "data": {"archive": "none.h5"},
            "model": {"widths": [4, 8, 8]},
            "views": {"size": [32, 32]},
            "method": {"name": "pscl-simclr", "reference": {"ids": ["a/b"]}, "projection": 16},
            "runtime": {"device": "cpu"},
            **changes,
        }
    )
