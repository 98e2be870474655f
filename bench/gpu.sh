#!/usr/bin/env bash
# Tests and measures on the GPU of this machine, unattended:
#
#   bash bench/gpu.sh [--dry] OUT [PART ...]
#
# Parts, in the order in which they run; all of them by default:
#   correctness  every kernel against float64; what fails here is not measured. Goes before any part that measures
#   ceilings     the card's own copy, matrix product and exponential rates
#   loss         patch_nt_xent          sampling  sample_similar and the released loop         queue  queue_info_nce
#   peers        what others offer for the same tasks
#   step         a whole pretraining step beside the released code, at nine images and at the largest batch
#   pretrain     real pretraining over batch sizes
#   study        the one-shot study
#   profile      kernels by torch's profiler, and by ncu where it is installed
#   plots        pictures of the results, where matplotlib is installed
#
# Each part has a time limit under ten minutes, writes its results into OUT as it goes, and does not stop the others.
# A part that was cut off goes on where it was when it is called again with the same OUT and the same kernels (step and
# pretrain: also the same toolkit and archive).
# Exit code 0: all parts ended well or had nothing to do; 1: some did not, see OUT/parts.txt; 2: wrong usage.
#
# Environment, all optional:
#   WHEELS    folder of wheels (bench/gpu/fetch_wheels.sh) to install for this run alone, without any network
#   RELEASED  checkout of github.com/neulmc/PSCL, for step
#   ARCHIVE   archive of micrographs, for pretrain (else synthetic alloys) and study
#   BUDGET    fewer seconds for each part than it would have
#   PYTHON    interpreter; python3 by default
#
# Needs torch, triton, numpy, h5py and pytest; step, pretrain and study need the toolkit's dependencies as well.
# --dry runs every part on the CPU at tiny sizes, the kernels in Triton's interpreter: it proves the scripts.
set -uo pipefail

parts_known="correctness ceilings loss sampling queue peers step pretrain study profile plots"
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
  case " $parts_known " in *" $part "*) ;; *) echo "there is no part $part" >&2; usage ;; esac
done
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
wanted=" ${*:-$parts_known} "
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
if [ -n "${RELEASED:-}" ]; then RELEASED=$(absolute "$RELEASED"); export RELEASED; else unset RELEASED; fi
if [ -n "${ARCHIVE:-}" ]; then ARCHIVE=$(absolute "$ARCHIVE"); export ARCHIVE; else unset ARCHIVE; fi
if [ -n "${WHEELS:-}" ]; then WHEELS=$(absolute "$WHEELS"); fi
cd "$(dirname "$0")/.." || exit 2

python=${PYTHON:-python3}
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
    echo "the wheels in $WHEELS could not be installed: going on without them" >&2
  fi
fi

# part_is: whether a part was asked for. run: one part within its seconds, with its outcome in parts.txt.
failed=0
part_is() { case $wanted in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
note() { printf '%-12s %-10s %s\n' "$1" "$2" "$3" | tee -a "$out/parts.txt"; }
run() {
  local part=$1 seconds=$2 begun=$SECONDS code
  shift 2
  if [ -n "${BUDGET:-}" ] && [ "$BUDGET" -lt "$seconds" ]; then seconds=$BUDGET; fi
  echo "== $part"
  # The scripts stop by themselves in time; whatever hangs is ended a little later.
  timeout --kill-after=10 $((seconds + 30)) "$@" --device $device --seconds "$seconds" 2>&1 | tee -a "$out/$part.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) note "$part" ok "$((SECONDS - begun)) s" ;;
    4) note "$part" unfinished "out of time after $((SECONDS - begun)) s; call it again"; failed=1 ;;
    124 | 137) note "$part" "cut off" "after $((SECONDS - begun)) s"; failed=1 ;;
    *) note "$part" failed "code $code, see $part.log"; failed=1 ;;
  esac
}
has() { "$python" -c "import $1" 2>/dev/null; }
# The toolkit itself: what step, pretrain and study need beyond the kernels.
toolkit_there=
toolkit() {
  if [ -z "$toolkit_there" ]; then
    if has pscl_hpc.pretraining; then toolkit_there=yes; else toolkit_there=no; fi
  fi
  [ $toolkit_there = yes ] && return 0
  note "$1" skipped "the toolkit's dependencies are not installed; see WHEELS in bench/gpu.sh"
  return 1
}

: >"$out/parts.txt"
for part in correctness loss sampling queue step pretrain profile; do
  if part_is $part; then
    run correctness 540 "$python" -m bench.gpu.check
    break
  fi
done
if part_is ceilings; then run ceilings 60 "$python" -m bench.gpu.ceilings; fi
if part_is loss; then run loss 480 "$python" -m bench.gpu.patch_nt_xent; fi
if part_is sampling; then run sampling 300 "$python" -m bench.gpu.sample_similar; fi
if part_is queue; then run queue 300 "$python" -m bench.gpu.queue_info_nce; fi
if part_is peers; then run peers 540 "$python" -m bench.gpu.peers; fi
if part_is step && toolkit step; then run step 480 "$python" -m bench.gpu.step; fi
if part_is pretrain && toolkit pretrain; then run pretrain 540 "$python" -m bench.gpu.pretrain; fi
if part_is study; then
  if [ ! -f configs/studies/one_shot.yaml ]; then
    note study skipped "configs/studies/one_shot.yaml is not there"
  elif [ -z "${ARCHIVE:-}" ]; then
    note study skipped "ARCHIVE names no archive"
  elif toolkit study; then
    run study 540 "$python" -m bench.gpu.study
  fi
fi
if part_is profile; then
  run profile 60 "$python" -m bench.gpu.profiled
  if [ $device = cuda ] && command -v ncu >/dev/null; then
    for kernel in _log_sums _pair_sums _weighted_negatives _weighted_keys _tile_maxima _greedy; do
      # The card's clocks stay as they are: they may not be ours to change.
      timeout 90 ncu --set full --clock-control none --launch-skip 2 --launch-count 1 --kernel-name "$kernel" \
        --force-overwrite --export "$out/ncu$kernel" "$python" -m bench.gpu.profiled --only run >"$out/ncu.log" 2>&1 &&
        ncu --import "$out/ncu$kernel.ncu-rep" --page details --csv >"$out/ncu$kernel.csv" 2>>"$out/ncu.log" ||
        note profile "no ncu" "of $kernel, see ncu.log"
    done
  fi
fi
if part_is plots; then
  if has matplotlib; then run plots 60 "$python" -m bench.plots "$out"; else note plots skipped "no matplotlib"; fi
fi
echo
cat "$out/parts.txt"
exit $failed
