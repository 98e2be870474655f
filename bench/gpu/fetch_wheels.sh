#!/usr/bin/env bash
# Downloads wheels for a machine without a package registry that runs bench/gpu.sh (Python 3.12, x86-64 Linux):
#
#   bash bench/gpu/fetch_wheels.sh FOLDER [peers] [toolkit]
#
# peers: the implementations that ours are compared with. toolkit: the dependencies of pscl_hpc, for the parts step,
# pretrain and plots, in the versions of constraints.txt. Both by default. WITHOUT="scipy pillow" leaves out packages
# that the machine has. Packages are downloaded without their dependencies, and the script fails if torch, Triton or an
# nvidia package is among them.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: bash bench/gpu/fetch_wheels.sh FOLDER [peers] [toolkit]" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
sets=${*:-peers toolkit}
root=$(cd "$(dirname "$0")/../.." && pwd)

peers=(
  inf-cl==1.2.1 cut-cross-entropy==25.1.1 lightly==1.6.0 info-nce-pytorch==0.1.4 open_clip_torch==3.3.0
  memeff==0.3.1
  pybind11==3.1.0 tqdm==4.70.1
)
# Published as source only; pure Python, so that wheels made here also work on the other machine.
peers_of_source=(pykeops==2.3 keopscore==2.3)
toolkit=(
  pydantic pydantic_core annotated-types typing-inspection typing_extensions typer annotated-doc shellingham rich
  markdown-it-py mdurl Pygments PyYAML safetensors monai imagecodecs tifffile pillow scipy Jinja2 MarkupSafe submitit
  cloudpickle matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil packaging
)

platforms=()
for tag in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 \
  manylinux2014_x86_64 manylinux_2_12_x86_64 manylinux2010_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$tag")
done
wheels() {
  local wanted=() package
  for package in "$@"; do
    case " ${WITHOUT:-} " in *" ${package%%=*} "*) ;; *) wanted+=("$package") ;; esac
  done
  [ ${#wanted[@]} -eq 0 ] || python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -c "$root/constraints.txt" -d "$folder" "${wanted[@]}"
}
for set in $sets; do
  case $set in
    peers)
      wheels "${peers[@]}"
      for package in "${peers_of_source[@]}"; do
        case " ${WITHOUT:-} " in *" ${package%%=*} "*) ;; *) python3 -m pip wheel -q --no-deps -w "$folder" "$package" ;; esac
      done
      ;;
    toolkit) wheels "${toolkit[@]}" ;;
    *)
      echo "unknown set $set" >&2
      exit 2
      ;;
  esac
done
for wheel in "$folder"/*.whl; do
  case $(basename "$wheel") in
    nvidia* | torch-* | triton-* | pytorch_triton-* | cuda_*)
      echo "$(basename "$wheel") must not be installed: the machine's own version is measured" >&2
      exit 1
      ;;
  esac
done
du -sh "$folder"
