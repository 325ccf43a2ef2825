#!/usr/bin/env bash
# Everything that only a GPU can tell, in at most 8 minutes and without a network: build, CUDA tests, races, benchmarks.
#   [TASK2VEC_RESULTS=FOLDER] [TASK2VEC_COMMIT=SHA] [PYTHON=python3] benchmarks/gpu.sh
#   benchmarks/gpu.sh --dry-run    # without a GPU: every command on the CPU, on tiny networks and images; nothing is built
# A step that fails or runs out of time does not stop the rest; the exit status says whether all passed. A benchmark writes
# its record after every row. There are at most 8 files: 6 records, and gpu.log in the results' folder with what was printed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
root=$PWD
python=${PYTHON:-python3}
dry=false
case ${1-} in
  "") ;;
  --dry-run) dry=true ;;
  *) echo "gpu.sh: expected --dry-run or nothing, got $1." >&2 && exit 2 ;;
esac
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

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
missing=()
modules=(torch torchvision numpy PIL safetensors rich typer pytest)
tools=("$python" timeout)
if ! $dry; then
  modules+=(pip pybind11 scikit_build_core)
  tools+=(nvcc)
  # cmake and ninja count as programs: as Python packages alone they may be another environment's.
  for tool in cmake ninja; do command -v "$tool" >/dev/null || missing+=("$tool (program)"); done
fi
for tool in "${tools[@]}"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
for module in "${modules[@]}"; do has "$module" || missing+=("$module (Python)"); done
if [ ${#missing[@]} -gt 0 ]; then
  printf 'gpu.sh: expected these to be installed, they are not: %s\n' "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')" >&2
  exit 2
fi
if $dry; then
  architecture="" # nothing is built
elif ! architecture=$("$python" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())' 2>/dev/null); then
  echo "gpu.sh: expected an NVIDIA GPU that torch can use, found none; nvidia-smi says whether the driver sees one." >&2
  exit 2
fi

: >"$log"
lines=() failed=0 planned=0 mode=plan
# SIGINT, so that Python prints what failed so far; a shell in the background passes on a SIGINT that is ignored.
interruptible=()
if env --default-signal=INT true 2>/dev/null; then interruptible=(env --default-signal=INT); fi

record() { lines+=("$(printf '%-26s %4ss of ~%3ss  %s' "$@")") && echo "${lines[-1]}"; }

step() { # NAME ESTIMATE LIMIT COMMAND…: at most LIMIT seconds, fewer if later steps would lose the seconds that they need
  local name=$1 estimate=$2 limit=$3 started=$SECONDS left status outcome=ok
  shift 3
  if [ "$mode" = plan ]; then
    planned=$((planned + estimate))
    return
  fi
  planned=$((planned - estimate)) # what is planned after this step
  left=$((deadline - SECONDS))
  if ((limit > left - planned)); then limit=$((left - planned > estimate ? left - planned : estimate)); fi
  if ((limit > left)); then limit=$left; fi
  if ! $dry && ((limit < 5)); then
    failed=1
    record "$name" 0 "$estimate" "skipped: no time left"
    return
  fi
  local limited=(timeout --signal=INT --kill-after=5 "$limit")
  if $dry; then limited=(); fi # the CPU may be busy with other tests
  printf '\n==> %s: %s\n' "$name" "$*" >>"$log"
  "${limited[@]}" "${interruptible[@]}" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) ;;
    124 | 137) outcome="stopped after $limit s" failed=1 ;;
    *) outcome="failed ($status): $(grep -v '^ *$' "$log" | tail -1 | cut -c -120)" failed=1 ;;
  esac
  record "$name" $((SECONDS - started)) "$estimate" "$outcome"
}

benchmark() { # NAME ESTIMATE LIMIT SCRIPT OPTION…; of an option given twice the last counts
  local name=$1 estimate=$2 limit=$3 script=$4 tiny=()
  shift 4
  if $dry; then
    tiny=(--arch tiny --size 24 --batch-size 2 --repeats 1 --device cpu)
    case $script in
      distances) tiny=(--tasks 60 --filters 40 --rounds 2) ;;
      end_to_end) tiny+=(--images 20) ;;
      inaturalist) tiny+=(--synthetic 24 --num-samples 16 --workers 1) ;;
      *) tiny+=(--precision fp32) ;;
    esac
  fi
  step "$name" "$estimate" "$limit" "$python" "benchmarks/$script.py" "$@" "${tiny[@]}"
}

# Outside the package's sources: for pytest they would hide what was built.
mkdir "$work/run"
ln -s "$root"/{benchmarks,tests,pyproject.toml} "$work/run"
tests=("$python" -m pytest -q --tb=short -p no:cacheprovider tests/{kernels,embed}/test_cuda.py)
sanitizer=(compute-sanitizer --tool racecheck --kernel-name kns=task2vec --error-exitcode 99) # our own kernels alone
eight=()
if has xdist; then eight=(-n 8); fi
archs=(resnet34 resnet50) precisions=(tf32 bf16)
if $dry; then
  archs=(resnet50) precisions=(bf16) # one of four that differ in nothing else
  cd "$work/run" || exit
  tests+=(--collect-only)
  sanitizer=()
else
  export PYTHONPATH=$work/site TASK2VEC_REQUIRE_CUDA=1
fi

steps() {
  if ! $dry; then
    step build 70 150 env CUDAARCHS="$architecture" \
      "$python" -m pip install "$root" --no-build-isolation --no-deps --no-index --quiet --target "$work/site"
    cd "$work/run" || exit
  fi
  step "CUDA tests" 60 90 "${tests[@]}" "${eight[@]}"
  if $dry || command -v compute-sanitizer >/dev/null; then
    step racecheck 50 75 "${sanitizer[@]}" "${tests[@]}" -m sanitizer
  elif [ "$mode" = run ]; then
    failed=1
    record racecheck 0 0 "skipped: compute-sanitizer is not installed"
  fi
  for arch in "${archs[@]}"; do
    for precision in "${precisions[@]}"; do
      benchmark "fisher_pass $arch $precision" 20 35 fisher_pass --append --arch "$arch" --precision "$precision" --repeats 5
    done
  done
  benchmark filter_grad_sq 45 75 filter_grad_sq --arch resnet34 resnet50 --repeats 5
  benchmark distances 25 45 distances
  benchmark variational 25 45 variational --repeats 5
  benchmark end_to_end 25 45 end_to_end --repeats 2
  benchmark inaturalist 35 60 inaturalist --synthetic 1024 --distinct 4 --num-samples 1024
}

steps
echo "about $planned s are planned, at most $deadline"
mode=run
steps
{
  printf '\n%s\n' "results and gpu.log: $TASK2VEC_RESULTS"
  if ! $dry; then nvidia-smi --query-gpu=name,driver_version --format=csv,noheader; fi
  printf '%s\n' "${lines[@]}"
} | tee -a "$log"
exit "$failed"
