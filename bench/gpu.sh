#!/usr/bin/env bash
# Tests and measures on the GPU of this machine, unattended, within 14 minutes:
#
#   bash bench/gpu.sh [--dry] OUT [PART ...]
#
# Parts, in the order in which they run; all of them by default:
#   correctness  every kernel against float64. Runs before any part that measures; what fails is not measured
#   ceilings     copy, matrix product and exponential rates of the card
#   loss         patch_nt_xent
#   sampling     sample_similar and the loop of the released code
#   queue        queue_info_nce
#   peers        implementations of both losses by others
#   step         the whole pretraining step, ours and the released code, over batch sizes
#   pretrain     real pretraining over batch sizes
#   plots        figures of the results, if matplotlib is installed
#
# Each part has a time limit, writes its results into OUT after each measurement, and does not stop the others. Called
# again with the same OUT and the same kernels, a part that ran out of time resumes (step and pretrain: also with the
# same toolkit and archive).
# Exit code 0: every part succeeded or was skipped; 1: some did not, see OUT/parts.txt; 2: wrong usage.
#
# Environment, all optional:
#   WHEELS    folder of wheels (bench/gpu/fetch_wheels.sh) to install for this run only, without a network
#   RELEASED  checkout of github.com/neulmc/PSCL, for step
#   ARCHIVE   archive of micrographs, for pretrain; synthetic alloys by default
#   BUDGET    seconds for all parts together; 840 by default
#   PYTHON    interpreter; python3 by default
#
# Needs torch, triton, numpy, h5py and pytest; step and pretrain need the toolkit's dependencies as well.
# --dry runs every part on the CPU at tiny sizes, the kernels in Triton's interpreter, to test the scripts.
set -uo pipefail

parts_known="correctness ceilings loss sampling queue peers step pretrain plots"
usage() {
  echo "usage: bash bench/gpu.sh [--dry] OUT [PART ...]    parts: $parts_known" >&2
  exit 2
}

device=cuda
if [ "${1:-}" = --dry ]; then
  device=cpu
  shift
fi
[ $# -ge 1 ] || usage
case $1 in -*) usage ;; esac
for part in "${@:2}"; do
  case " $parts_known " in *" $part "*) ;; *) echo "unknown part $part" >&2; usage ;; esac
done
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
wanted=" ${*:-$parts_known} "
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
for name in RELEASED ARCHIVE WHEELS; do
  if [ -n "${!name:-}" ]; then export "$name=$(absolute "${!name}")"; else unset "$name"; fi
done
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
budget=${BUDGET:-840}
export PYTHONPATH="$PWD:$PWD/kernels" PYTHONUNBUFFERED=1 PSCL_BENCH_RESULTS="$out"
unset PSCL_KERNELS_BACKEND TRITON_INTERPRET
if [ $device = cpu ]; then export TRITON_INTERPRET=1; fi
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d) || exit 2
  trap 'rm -rf "$site"' EXIT
  if "$python" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" \
    "$WHEELS"/*.whl; then
    PYTHONPATH="$PYTHONPATH:$site"
  else
    echo "the wheels in $WHEELS could not be installed; running without them" >&2
  fi
fi

failed=0
part_is() { case $wanted in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
note() { printf '%-12s %-10s %s\n' "$1" "$2" "$3" | tee -a "$out/parts.txt"; }
# run PART SECONDS MODULE [ARGUMENT ...]: one part, within its seconds and what is left of the budget.
run() {
  local part=$1 seconds=$2 begun=$SECONDS code
  shift 2
  if [ $((budget - SECONDS)) -lt "$seconds" ]; then seconds=$((budget - SECONDS)); fi
  if [ "$seconds" -lt 1 ]; then
    note "$part" unfinished "no time left; call it again"
    failed=1
    return
  fi
  echo "== $part"
  # The scripts stop in time by themselves; one that hangs is ended a little later.
  timeout --kill-after=10 $((seconds + (seconds < 20 ? seconds : 20))) "$python" -m "$@" --device $device --seconds "$seconds" 2>&1 |
    tee -a "$out/$part.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) note "$part" ok "$((SECONDS - begun)) s" ;;
    4) note "$part" unfinished "out of time after $((SECONDS - begun)) s; call it again"; failed=1 ;;
    124 | 137) note "$part" "cut off" "after $((SECONDS - begun)) s"; failed=1 ;;
    *) note "$part" failed "code $code, see $part.log"; failed=1 ;;
  esac
}
has() { "$python" -c "import $1" 2>/dev/null; }
# run_if MODULE PART ...: `run` if the module can be imported.
run_if() {
  if has "$1"; then run "${@:2}"; else note "$2" skipped "$1 cannot be imported; see WHEELS in bench/gpu.sh"; fi
}

: >"$out/parts.txt"
for part in correctness loss sampling queue step pretrain; do
  if part_is $part; then
    run correctness 240 bench.gpu.check
    break
  fi
done
if part_is ceilings; then run ceilings 30 bench.gpu.ceilings; fi
if part_is loss; then run loss 120 bench.gpu.operations patch_nt_xent; fi
if part_is sampling; then run sampling 60 bench.gpu.operations sample_similar; fi
if part_is queue; then run queue 60 bench.gpu.operations queue_info_nce; fi
if part_is peers; then run peers 200 bench.gpu.peers; fi
if part_is step; then run_if pscl_hpc.pretraining step 120 bench.gpu.step; fi
if part_is pretrain; then run_if pscl_hpc.pretraining pretrain 120 bench.gpu.pretrain; fi
if part_is plots; then run_if matplotlib plots 60 bench.plots "$out"; fi
echo
cat "$out/parts.txt"
exit $failed
