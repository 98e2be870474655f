#!/usr/bin/env bash
# Tests and measures the Triton kernels on the GPU of this machine:  bash bench/gpu.sh OUT
#
# Needs torch, triton, numpy and pytest, no network and no installation of this package. Writes into OUT:
#   correctness.log           the correctness suite, which runs first: no figure is taken where it fails
#   gpu-ceilings.json         the card's own copy and matrix product rates
#   gpu-patch-nt-xent.json    the loss at the shapes of kernels/README.md
#   gpu-sample-similar.json   similarity sampling, likewise
#   log_sums.ncu-rep ...      profiles of the main kernels, where ncu is installed
set -euo pipefail
if [ $# -ne 1 ]; then
  echo "usage: bash bench/gpu.sh OUT" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels" PYTHONUNBUFFERED=1 PSCL_BENCH_RESULTS="$out"
unset TRITON_INTERPRET PSCL_KERNELS_BACKEND

python -m pytest -c /dev/null --rootdir . -q -p no:cacheprovider bench/gpu/correctness.py 2>&1 | tee "$out/correctness.log"
python -m bench.gpu.ceilings
python -m bench.gpu.patch_nt_xent
python -m bench.gpu.sample_similar
if command -v ncu >/dev/null; then
  for kernel in _log_sums _weighted_negatives _tile_maxima _greedy; do
    ncu --set full --launch-skip 2 --launch-count 1 --kernel-name "$kernel" --force-overwrite \
      --export "$out/${kernel#_}" python -m bench.gpu.profiled || echo "ncu could not profile $kernel" >&2
  done
fi
