"""The compiled module: how it was built, and the CUDA kernels for a GPU, compiled now if the build has none for it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _C
from .._util.warnings import Task2VecWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SCALARS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""What the native module calls a dtype: ``enum class Scalar`` of ``csrc/kernels.h``."""


class BuildInfo(NamedTuple):
    """How the installed native module was built."""

    version: str
    compiler: str
    cuda_version: str | None
    """Version of the CUDA compiler; None if the module has no CUDA kernels."""
    cuda_architectures: tuple[str, ...] | None
    """In CMake's notation: ``"80-real"`` is machine code for 8.x, ``"90"`` machine code for 9.0 and PTX for newer."""
    openmp: int | None
    """Date of the OpenMP specification, yyyymm; None if the CPU loops run on one thread."""


def build_info() -> BuildInfo:
    """Return version, compiler, CUDA version and architectures, and OpenMP of the installed native module.

    Returns:
        A `BuildInfo`; ``cuda_version`` and ``cuda_architectures`` are None where nvcc was not found at build time.
    """
    architectures = _C.cuda_architectures
    return BuildInfo(
        version=importlib.metadata.version("task2vec_ext"),
        compiler=_C.compiler,
        cuda_version=_C.cuda_version,
        cuda_architectures=None if architectures is None else tuple(architectures.split(",")),
        openmp=_C.openmp,
    )


class Runtime(NamedTuple):
    """The CUDA kernels to launch, and where."""

    kernels: type[_C.cuda]
    device: int
    stream: int
    multiprocessors: int
    tensor_cores: bool  # on compute capability 8.0 and later

    @classmethod
    def of(cls, tensor: Tensor) -> Runtime:
        """Return the kernels for the tensor's device, and torch's current stream on it."""
        device = tensor.device
        kernels, multiprocessors, tensor_cores = _found(device)
        stream = torch.cuda.current_stream(device).cuda_stream
        return cls(kernels, device.index, stream, multiprocessors, tensor_cores)


@functools.cache  # asked for in every call of a kernel
def _found(device: torch.device) -> tuple[type[_C.cuda], int, bool]:
    """Return kernels, number of multiprocessors and whether there are tensor cores that they use."""
    properties = torch.cuda.get_device_properties(device)
    return cuda_kernels(device), properties.multi_processor_count, properties.major >= 8


def covers(architectures: str | None, capability: tuple[int, int]) -> bool:
    """Whether a module built for `architectures` (CMake's notation) has code for a GPU of `capability`.

    Machine code of X.Y runs on X.Z with Z ≥ Y; PTX of X.Y is compiled by the driver for anything newer.
    """
    for entry in (architectures or "").split(","):
        digits, _, kind = entry.partition("-")
        if not digits.isdigit():
            continue  # "90a" and the like hold for exactly one chip and are not used here
        built = (int(digits[:-1]), int(digits[-1]))
        machine_code = kind != "virtual" and built[0] == capability[0] and built[1] <= capability[1]
        ptx = kind != "real" and built <= capability
        if machine_code or ptx:
            return True
    return False


def cuda_kernels(device: torch.device) -> type[_C.cuda]:
    """Return the CUDA kernels that run on `device`: the built ones, or ones compiled for it now."""
    capability = torch.cuda.get_device_capability(device)
    return (_C if covers(_C.cuda_architectures, capability) else compile_kernels(capability)).cuda


@functools.cache
def compile_kernels(capability: tuple[int, int]) -> Any:
    """Return a native module with CUDA kernels for GPUs of `capability`, compiled from the package's own sources.

    The module has the submodule `cuda` alone. torch caches it (``TORCH_EXTENSIONS_DIR``): only the first process on a
    machine waits for the compiler.
    """
    from torch.utils import cpp_extension

    name, digits = "{}.{}".format(*capability), "{}{}".format(*capability)
    built = _C.cuda_architectures or "none: nvcc was not found when it was installed"
    if cpp_extension.CUDA_HOME is None or not shutil.which(str(Path(cpp_extension.CUDA_HOME, "bin", "nvcc"))):
        raise RuntimeError(
            f"task2vec_ext: expected kernels for this GPU (compute capability {name}) in the installed module, or nvcc "
            f"to compile them; got a module built for {built}, and no nvcc. Install the CUDA toolkit "
            f"{torch.version.cuda or ''} and set CUDA_HOME, or use device='cpu'."
        )
    warnings.warn(
        f"compiling the CUDA kernels for compute capability {name} once (the installed module was built for {built}); "
        "this takes about a minute and is cached",
        Task2VecWarning,
        stacklevel=2,
    )
    source = source_folder()
    defines = [f'-DTASK2VEC_ARCHITECTURES=\\"{digits}-real\\"', f'-DTASK2VEC_CUDA_VERSION=\\"{torch.version.cuda}\\"']
    with _environment(TORCH_CUDA_ARCH_LIST=name):
        try:
            return cpp_extension.load(
                name=f"task2vec_ext_sm{digits}",
                sources=[str(source / "python" / "module.cpp"), *map(str, sorted(source.glob("csrc/cuda/*.cu")))],
                extra_include_paths=[str(source / "csrc")],
                extra_cflags=["-O3", "-std=c++17", "-fopenmp", "-DTASK2VEC_CUDA", *defines],
                extra_cuda_cflags=["-O3", "-std=c++17", "-lineinfo"],
                extra_ldflags=["-fopenmp", *(f"-L{folder}" for folder in _cudart_folders(cpp_extension.CUDA_HOME))],
                with_cuda=True,
            )
        except Exception as error:
            raise RuntimeError(f"task2vec_ext: compiling the CUDA kernels for {name} failed: {error}") from error


def source_folder() -> Path:
    """Return the folder that holds ``csrc/`` and ``python/``, installed beside the native module."""
    return Path(_C.__file__).with_name("_src")


def _cudart_folders(cuda_home: str) -> list[Path]:
    """Return the folders with libcudart; torch looks in CUDA_HOME/lib64 alone, where an nvcc may stand by itself."""
    homes = [os.environ.get("CUDA_PATH", ""), cuda_home, "/usr/local/cuda"]
    folders = [Path(home, lib) for home in homes if home for lib in ("lib64", "lib")]
    return [folder for folder in folders if (folder / "libcudart.so").exists()]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ[key] for key in values if key in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for key in values:
            del os.environ[key]
        os.environ.update(before)
