"""The CUDA kernels compiled for the CPU: csrc/cuda as plain C++ on the device of cuda/device.h and simt.h.

A module for the tests, and a program that ThreadSanitizer watches (races.cpp). A build stays in the user's cache under
a hash of all that goes into it. TASK2VEC_SIMT_FLAGS are more flags for the compiler ($CXX, or g++) of the module.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
# The optimiser removes accesses that it can: -O1 leaves more of them to watch, and compiles fast.
WATCHED = ("-fsanitize=thread,alignment", "-fno-sanitize-recover=alignment")
RACE_FLAGS = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


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
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    sources = [*sorted(ROOT.glob("csrc/cuda/*.cu")), ROOT / "python" / "module.cpp"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with_flags = {source: [*flags, *includes] for source in sources}
    return _build(cache, "simt", suffix, with_flags, [*flags, "-shared"], pybind11.__version__)


def build_races(cache: Path) -> Path:
    """Return the program races.cpp in `cache`, compiled if it is not there yet."""
    return _build(cache, "races", "", race_sources(ROOT, WATCHED), WATCHED)


def race_sources(root: Path, watched: Sequence[str]) -> dict[Path, list[str]]:
    """Return the sources of the program races.cpp, with the kernels of `root`, and the flags of each."""
    kernels = [*sorted(root.glob("csrc/cuda/*.cu")), DEVICE / "racy.cpp"]
    sources = {source: [*RACE_FLAGS, *watched] for source in kernels}
    return {**sources, DEVICE / "races.cpp": [*RACE_FLAGS, "-O2"]}


def no_races() -> str | None:
    """Why races cannot be looked for here, or None."""
    if reason := missing():
        return reason
    if shutil.which("setarch") is None:
        return "no setarch in PATH (util-linux)"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
        source.write_text("int main() {}\n")
        for command in ([*_compiler(), *WATCHED, source, "-o", program], watched_command(program)):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
            if done.returncode:
                return f"no ThreadSanitizer: {shlex.join(map(str, command))} failed: {done.stderr.strip()[-200:]}"
    return None


def watched_command(program: Path, *parts: str) -> list[str | Path]:
    """Return the command that runs a program built by `build_races`; its address space must not be randomised."""
    return ["setarch", "-R", program, *parts]


def _build(
    cache: Path,
    stem: str,
    suffix: str,
    sources: Mapping[Path, Sequence[str]],
    link: Sequence[str],
    version: str = "",
) -> Path:
    """Compile each source with its flags, and link them into a file of `cache` unless it is there."""
    compiler = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    flags = [[flag for flag in of_source if not flag.startswith("-I")] for of_source in sources.values()]
    digest = hashlib.sha256(repr((compiler, version, flags, link, suffix)).encode())
    for path in sorted({*ROOT.glob("csrc/**/*.*"), *DEVICE.glob("**/*.h"), *sources}):
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    built = cache / f"{stem}-{digest.hexdigest()[:32]}{suffix}"
    if built.exists():
        return built

    cache.mkdir(parents=True, exist_ok=True)
    with _only_one(cache), tempfile.TemporaryDirectory(dir=cache) as folder:
        if built.exists():  # made by another process in the meantime
            return built
        objects = compile_objects(sources, Path(folder))
        linked = Path(folder, built.name)
        _run([*_compiler(), *link, *objects, "-o", linked])
        linked.replace(built)  # at once: another process may look for it
    return built


@contextlib.contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    """Wait until no other process compiles into `cache`: the second one would compile the same."""
    folder = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # gone when it is closed, also by the end of the process
        yield
    finally:
        os.close(folder)


def compile_objects(sources: Mapping[Path, Sequence[str]], folder: Path, root: Path = ROOT) -> list[Path]:
    """Compile each source with its flags into `folder`, headers of `root`."""
    includes = [f"-I{path}" for path in (DEVICE, root / "csrc")]  # the emulated device's cuda/device.h is found first
    objects = [Path(folder, source.name).with_suffix(".o") for source in sources]
    jobs = [
        [*_compiler(), *flags, *includes, "-x", "c++", "-c", source, "-o", to]
        for (source, flags), to in zip(sources.items(), objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, jobs))
    return objects


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "task2vec_ext")


def _environment() -> dict[str, str]:
    """Return the environment without a sanitizer that the tests preload."""
    return {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        raise RuntimeError(f"emulation: {shlex.join(map(str, command))} failed:\n{done.stderr}")
