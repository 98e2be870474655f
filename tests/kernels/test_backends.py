"""Choice of the backend."""

import pytest
import torch

from pscl_kernels import patch_nt_xent, sample_similar
from pscl_kernels.backends import ENVIRONMENT_VARIABLE, resolve_backend

ROWS = torch.ones(2, 3)


def test_auto_is_chunked_on_a_cpu(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert resolve_backend("auto", ROWS) == "chunked"


def test_environment_replaces_auto_alone(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert resolve_backend("auto", ROWS) == "reference"
    assert resolve_backend("chunked", ROWS) == "chunked"


def test_unknown_backend_names_the_choices(monkeypatch):
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"'fast' does not exist: choose auto, reference or chunked"):
        patch_nt_xent(rows, rows, backend="fast")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "turbo")
    with pytest.raises(ValueError, match=rf"{ENVIRONMENT_VARIABLE} 'turbo' does not exist"):
        sample_similar(rows, rows.unsqueeze(0))
