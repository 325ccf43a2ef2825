"""The CUDA kernels compiled for the CPU: csrc/cuda as plain C++ on the device of cuda/device.h and simt.h.

A build is kept in the user's cache under a hash of all that goes into it. TASK2VEC_SIMT_FLAGS are further flags for the
compiler ($CXX, or g++) and the linker.
"""

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

DEVICE = Path(__file__).resolve().parent
ROOT = DEVICE.parents[1]
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-DTASK2VEC_MODULE=_simt", "-DTASK2VEC_CUDA"),
    *('-DTASK2VEC_ARCHITECTURES="simt"', '-DTASK2VEC_CUDA_VERSION="simt"'),
)


def missing() -> str | None:
    """Why the kernels cannot be compiled here, or None."""
    if shutil.which(_compiler()[0]) is None:
        return f"no C++ compiler {_compiler()[0]!r} in PATH (CXX names another)"
    return None if importlib.util.find_spec("pybind11") else "no pybind11"


@functools.cache
def load() -> ModuleType:
    """Return the native module with its emulated kernels in `cuda`, compiled unless the cache has it."""
    spec = importlib.util.spec_from_file_location("_simt", build(_cache()))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(cache: Path) -> Path:
    """Return the shared library in `cache`, compiled if it is not there yet."""
    import pybind11

    flags = [*FLAGS, *shlex.split(os.environ.get("TASK2VEC_SIMT_FLAGS", ""))]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((version, flags, suffix, pybind11.__version__)).encode())
    for path in sorted([*ROOT.glob("csrc/**/*.*"), *ROOT.glob("python/*.cpp"), *DEVICE.glob("**/*.h")]):
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    library = cache / f"simt-{digest.hexdigest()[:32]}{suffix}"
    if library.exists():
        return library

    # The emulated device comes before csrc/: its cuda/device.h is found first.
    includes = [f"-I{path}" for path in (DEVICE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    sources = [*sorted(ROOT.glob("csrc/cuda/*.cu")), ROOT / "python" / "module.cpp"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(folder, source.name).with_suffix(".o") for source in sources]
        jobs = [
            [*_compiler(), *flags, *includes, "-x", "c++", "-c", source, "-o", to]
            for source, to in zip(sources, objects, strict=True)
        ]
        list(pool.map(_run, jobs))
        linked = Path(folder, library.name)
        _run([*_compiler(), *flags, "-shared", *objects, "-o", linked])
        linked.replace(library)  # at once: another process may be building the same
    return library


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "task2vec_ext")


def _run(command: list[str | Path]) -> None:
    # A sanitizer that the tests preload is not for the compiler.
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"emulation: {shlex.join(map(str, command))} failed:\n{done.stderr}")
