"""Operations on the meta device, which they treat as an accelerator, with kernels that do nothing."""

import contextlib
import importlib.util
from collections import Counter

import pytest
import torch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


class Silent:
    """A kernel that does nothing, whatever its grid, but asks which device is current and counts its launches."""

    def __init__(self, name, current, launches):
        self.name, self.current, self.launches = name, current, launches

    def __getitem__(self, grid):
        assert self.current == [torch.device("meta")], "launched on whatever device is current"

        def launch(*args, **kwargs):
            self.launches[self.name] += 1

        return launch


def replace_kernels(monkeypatch) -> Counter:
    """Replace all Triton kernels until the end of the test; returns the number of launches of each."""
    current, launches = [], Counter()

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    if importlib.util.find_spec("triton") is None:
        return launches
    from pscl_kernels.patch_nt_xent.triton import backward, forward, preparation
    from pscl_kernels.patch_nt_xent.triton import runs as patch_runs
    from pscl_kernels.queue_info_nce.triton import rows, runs, sorting, tiles
    from pscl_kernels.sample_similar import triton as sampling

    for module, names in (
        (preparation, ["_prepare", "_mean"]),
        (forward, ["_log_sums"]),
        (patch_runs, ["_runs"]),
        (backward, ["_weighted_negatives", "_finish", "_temperature_gradient"]),
        (rows, ["_prepare", "_losses", "_finish"]),
        (sorting, ["_group_keys", "_label_runs", "_copy_keys"]),
        (runs, ["_run_pieces", "_run_totals"]),
        (tiles, ["_log_sums", "_weighted_keys"]),
        (sampling, ["_tile_maxima", "_greedy"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Silent(name, current, launches))
    return launches
