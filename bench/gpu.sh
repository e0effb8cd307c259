#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine that has one: build, tests, sanitizers, ceilings,
# figures. Nothing is downloaded. From anywhere:
#
#     bench/gpu.sh                        # all steps
#     bench/gpu.sh test sanitize          # some of: build test sanitize ceilings figures
#     bench/gpu.sh --dry-run              # print the commands, and check what can be checked
#
# Settings from the environment: PYTHON (python3), OUT (a folder for results, gpu-results),
# BENCH_ARGUMENTS (for bench_gpu.py, e.g. --quick), CUDA_HOME (where nvcc and compute-sanitizer are).
# Python must have torch with CUDA, scikit-build-core, pybind11, cmake, ninja, pytest and scipy.
# Exits with 0 where all that was asked for passed, 3 where there is no GPU.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-results}
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
if [[ -d $CUDA_HOME/bin ]]; then PATH=$PATH:$CUDA_HOME/bin; fi
if [[ -d $CUDA_HOME/compute-sanitizer ]]; then PATH=$PATH:$CUDA_HOME/compute-sanitizer; fi
export PATH

is_dry=false
steps=()
for argument in "$@"; do
  case $argument in
    --dry-run) is_dry=true ;;
    build | test | sanitize | ceilings | figures) steps+=("$argument") ;;
    *)
      echo "gpu.sh: unknown step or option '$argument'" >&2
      exit 2
      ;;
  esac
done
if [[ ${#steps[@]} == 0 ]]; then steps=(build test sanitize ceilings figures); fi

say() { printf '\n== %s\n' "$*"; }

fail() {
  echo "gpu.sh: $*" >&2
  exit "${status:-1}"
}

# Runs a command, or prints it.
run() {
  printf '+ %s\n' "$*"
  if $is_dry; then return; fi
  "$@"
}

lacks=() # what a dry run misses here

# A command must be there before minutes are spent on others.
need() {
  if command -v "$1" > /dev/null; then return; fi
  if $is_dry; then
    lacks+=("$1 ($2)")
    echo "missing here: ${lacks[-1]}"
  else
    fail "$1 was not found; $2"
  fi
}

wants() { [[ " ${steps[*]} " == *" $1 "* ]]; }

# -- what is needed -----------------------------------------------------------

say "requirements"
need "$PYTHON" "set PYTHON to the interpreter that has torch"
status=3 need nvidia-smi "there is no GPU, or no driver of NVIDIA for it"
if wants build || wants ceilings; then need nvcc "install the CUDA toolkit, or set CUDA_HOME"; fi
if wants sanitize; then need compute-sanitizer "it comes with the CUDA toolkit; set CUDA_HOME"; fi
# Prints what is not installed, and fails.
modules() {
  "$PYTHON" - << 'PYTHON'
import importlib.util
import sys

needed = ("torch", "scikit_build_core", "pybind11", "pytest", "numpy", "scipy")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.executable} has no {', '.join(missing)}")
PYTHON
}

if $is_dry && command -v "$PYTHON" > /dev/null && ! found=$(modules 2>&1); then
  lacks+=("$found")
  echo "missing here: $found"
fi
if ! $is_dry; then
  if ! gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1); then
    status=3 fail "there is no GPU: $gpus"
  fi
  echo "$gpus"
  modules || status=3 fail "this Python lacks what is needed"
  "$PYTHON" - << 'PYTHON' || status=3 fail "this Python cannot use the GPU"
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, "
      f"{torch.cuda.get_device_name()}")
PYTHON
fi
run mkdir -p "$OUT"

# -- build --------------------------------------------------------------------

if wants build; then
  say "build"
  run env NOISYFLOW_CUDA=ON "$PYTHON" -m pip install --no-build-isolation --no-deps \
    --force-reinstall .
  run "$PYTHON" -m noisyflow.cli check
fi

# -- tests --------------------------------------------------------------------

if wants test; then
  say "tests against float64"
  run "$PYTHON" -m pytest -m gpu tests/test_gpu.py --junitxml "$OUT/tests.xml"
  if ! $is_dry; then
    "$PYTHON" - "$OUT/tests.xml" << 'PYTHON' || fail "GPU tests did not all run"
import sys
import xml.etree.ElementTree as tree

suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
print(count)
# A few may be skipped for their size; none ran where the fixture found no GPU.
sys.exit(not (count["tests"] - count["skipped"] >= 50 and not count["failures"] + count["errors"]))
PYTHON
  fi
fi

# -- sanitizers ---------------------------------------------------------------

if wants sanitize; then
  for tool in memcheck racecheck synccheck initcheck; do
    say "compute-sanitizer: $tool"
    log=$OUT/$tool.log
    rm -f "$log" "$log.out"
    options=(--tool "$tool" --error-exitcode 9 --log-file "$log")
    # What torch's own kernels read of padding is no concern here.
    if [[ $tool == initcheck ]]; then options+=(--kernel-name kernel_substring=noisyflow); fi
    # torch's pool of memory would hide a read beyond an array: no pool.
    run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" \
      "$PYTHON" bench/bench_gpu.py --launch-everything "$log.out"
    if $is_dry; then continue; fi
    # A tool or a program that did not run leaves no such lines: a failure like any other.
    grep -E "(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)" "$log" ||
      fail "$tool did not end with 0 errors: $log"
    grep -E "^[1-9][0-9]* launches" "$log.out" || fail "$tool saw no launches"
  done
fi

# -- figures ------------------------------------------------------------------

if wants ceilings; then
  say "ceilings"
  architecture=native
  if $is_dry; then architecture=sm_90; fi
  program=${TMPDIR:-/tmp}/noisyflow-gpu-ceilings-$$
  trap 'rm -f "$program" "$program.json"' EXIT
  if $is_dry && ! command -v nvcc > /dev/null; then
    echo "not compiled: no nvcc"
  else
    printf '+ nvcc -O3 -arch=%s bench/gpu_ceilings.cu\n' "$architecture"
    nvcc -O3 -std=c++17 -arch="$architecture" -o "$program" bench/gpu_ceilings.cu
  fi
  if ! $is_dry; then
    "$program" > "$program.json"
    mv "$program.json" "$OUT/ceilings.json" # whole or not at all
    cat "$OUT/ceilings.json"
  fi
fi

if wants figures; then
  say "figures"
  # shellcheck disable=SC2086 # several arguments in one variable
  run "$PYTHON" bench/bench_gpu.py --ceilings "$OUT/ceilings.json" --json "$OUT/gpu.json" \
    ${BENCH_ARGUMENTS:-}
fi

if $is_dry; then
  say "nothing was run"
  for missing in ${lacks[@]+"${lacks[@]}"}; do echo "missing here: $missing"; done
else
  say "done: $OUT"
fi
