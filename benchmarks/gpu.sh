#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most 8 minutes and without a network: build, CUDA tests, sanitizers, benchmarks.
#   [TASK2VEC_RESULTS=FOLDER] [PYTHON=python3] benchmarks/gpu.sh
# A step that fails or runs out of time does not stop the rest; the exit status says whether all passed. What the steps print
# goes to gpu.log in the results' folder, where the JSON goes, too.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
export TASK2VEC_RESULTS=${TASK2VEC_RESULTS:-$root/benchmarks/results} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
readonly deadline=470 # seconds in all, the last table included
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$TASK2VEC_RESULTS"
TASK2VEC_RESULTS=$(cd "$TASK2VEC_RESULTS" && pwd)
log=$TASK2VEC_RESULTS/gpu.log
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
# The programs of that Python's packages (cmake, ninja), also where its environment is not activated.
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))' 2>/dev/null):$PATH

missing=()
for tool in "$python" nvcc timeout; do command -v "$tool" >/dev/null || missing+=("$tool"); done
# cmake and ninja count as programs: as Python packages alone they may be another environment's.
for tool in cmake ninja; do command -v "$tool" >/dev/null || missing+=("$tool (program)"); done
for module in pip torch torchvision numpy PIL safetensors rich typer pybind11 scikit_build_core pytest; do
  "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" 2>/dev/null || missing+=("$module (Python)")
done
if [ ${#missing[@]} -gt 0 ]; then
  printf 'gpu.sh: expected these to be installed, they are not: %s\n' "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')" >&2
  exit 2
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu.sh: expected an NVIDIA GPU that torch can use, found none; nvidia-smi says whether the driver sees one." >&2
  exit 2
fi

: >"$log"
steps=() failed=0
record() { steps+=("$(printf '%-22s %4ss  %s' "$1" "$2" "$3")") && echo "${steps[-1]}"; }
step() { # NAME SECONDS COMMAND…
  local name=$1 limit=$2 started=$SECONDS status outcome=ok
  shift 2
  if ((SECONDS + limit > deadline)); then limit=$((deadline - SECONDS)); fi
  if ((limit < 5)); then
    failed=1
    record "$name" 0 "skipped: no time left"
    return
  fi
  printf '\n==> %s: %s\n' "$name" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) ;;
    124 | 137) outcome="stopped after $limit s" failed=1 ;;
    *) outcome="failed ($status): $(grep -v '^ *$' "$log" | tail -1 | cut -c -120)" failed=1 ;;
  esac
  record "$name" $((SECONDS - started)) "$outcome"
}

step build 120 "$python" -m pip install . --no-build-isolation --no-deps --quiet --target "$work/site"

# From a folder without the package's sources: for pytest they would hide what was built.
mkdir "$work/run"
ln -s "$root"/{benchmarks,tests,pyproject.toml} "$work/run"
cd "$work/run" || exit
export PYTHONPATH=$work/site TASK2VEC_REQUIRE_CUDA=1
cuda_tests=("$python" -m pytest -q -p no:cacheprovider tests/kernels/test_cuda.py)
sanitizer=(compute-sanitizer --kernel-name kns=task2vec --error-exitcode 99) # our own kernels alone
benchmark() { step "$1" "$2" "$python" "benchmarks/$1.py" "${@:3}"; }

step "CUDA tests" 60 "${cuda_tests[@]}"
benchmark fisher_pass 100 --arch resnet34 resnet50 --repeats 3
benchmark filter_grad_sq 60 --arch resnet34 resnet50 --repeats 3
benchmark variational 60 --repeats 3
benchmark distances 40
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 75 "${sanitizer[@]}" --tool "$tool" "${cuda_tests[@]}" -k "every_route_equals and f32"
  done
else
  failed=1
  for tool in memcheck racecheck; do record "$tool" 0 "skipped: compute-sanitizer is not installed"; done
fi
benchmark end_to_end 40 --repeats 2
benchmark inaturalist 60 --synthetic 1024 --num-samples 1024
benchmark peers 60 --repeats 3 --budget 5

printf '\n%s\n%s\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)" "results and gpu.log: $TASK2VEC_RESULTS"
printf '%s\n' "${steps[@]}"
exit "$failed"
