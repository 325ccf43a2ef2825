"""The native module (python/module.cpp): addresses, sizes and strides in, nothing out.

`cpu` and `cuda` are submodules, the latter only where the module was built with CUDA; they are classes here so that one
file can describe them.
"""

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

compiler: str
openmp: int | None
cuda_version: str | None
cuda_architectures: str | None

_Pair: TypeAlias = tuple[int, int]
_Conv: TypeAlias = tuple[int, int, int, int, _Pair, _Pair, _Pair, _Pair, _Pair, _Pair]
_Window: TypeAlias = tuple[_Pair, _Pair, _Pair, int, int]
_Shape: TypeAlias = tuple[int, int, int, bool, bool]
_Key: TypeAlias = tuple[int, int, int]
_Rows: TypeAlias = tuple[int, int, int]

class _CpuRoute(Protocol):
    def __call__(
        self,
        input: int,
        input_strides: Sequence[int],
        grad_output: int,
        grad_strides: Sequence[int],
        scalar: int,
        conv: _Conv,
        out: int,
        /,
    ) -> None: ...

class _CudaTiles(Protocol):
    def __call__(
        self,
        input: int,
        input_strides: Sequence[int],
        grad_output: int,
        grad_strides: Sequence[int],
        scalar: int,
        conv: _Conv,
        splits: int,
        partial: int,
        device: int,
        stream: int,
        /,
    ) -> None: ...

class cpu:
    noise_tile: Final[int]
    filter_grad_sq_direct: Final[_CpuRoute]
    filter_grad_sq_winograd: Final[_CpuRoute]
    filter_grad_sq_shifted_gram: Final[_CpuRoute]

    @staticmethod
    def instruction_sets() -> list[str]: ...
    @staticmethod
    def use_instruction_set(name: str) -> None: ...
    @staticmethod
    def scratch_peak() -> int: ...
    @staticmethod
    def philox(key: int, counter: Sequence[int]) -> list[int]: ...
    @staticmethod
    def local_noise(output: int, scalar: int, norm: int, sigma: int, shape: _Shape, key: _Key, out: int) -> None: ...
    @staticmethod
    def local_noise_backward(
        grad: int, scalar: int, norm: int, sigma: int, shape: _Shape, key: _Key, sums: int, grad_norm: int
    ) -> None: ...
    @staticmethod
    def weight_noise(weight: int, scalar: int, sigma: int, starts: int, filters: int, key: _Key, out: int) -> None: ...
    @staticmethod
    def weight_noise_backward(grad: int, scalar: int, starts: int, filters: int, key: _Key, sums: int) -> None: ...
    @staticmethod
    def sym_distances_fast(
        a: int, b: int, counts: _Pair, filters: int, shift: int, symmetric: bool, out: int
    ) -> None: ...
    @staticmethod
    def sym_distances_exact(
        a: int, b: int, exponent_a: int, exponent_b: int, counts: _Pair, filters: int, symmetric: bool, out: int
    ) -> None: ...

class cuda:
    noise_tile: Final[int]
    noise_filters: Final[int]
    filter_grad_sq_direct: Final[_CudaTiles]
    filter_grad_sq_direct_mma: Final[_CudaTiles]

    @staticmethod
    def filter_grad_sq_direct_mma_tiles(scalar: int, conv: _Conv, device: int) -> list[int]: ...
    @staticmethod
    def filter_grad_sq_narrow(
        input: int,
        input_strides: Sequence[int],
        grad_output: int,
        grad_strides: Sequence[int],
        scalar: int,
        conv: _Conv,
        out: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def filter_grad_sq_gather(
        gram: int,
        matrices: int,
        positions: _Pair,
        pixels: _Pair,
        window: _Window,
        pitch: int,
        a: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def filter_grad_sq_gram(
        a: int,
        rows: int,
        row_strides: Sequence[int],
        columns: int,
        column_strides: Sequence[int],
        scalar: int,
        samples: int,
        groups: int,
        group_filters: int,
        positions: _Pair,
        pitch: int,
        out_width: int,
        tensor_cores: bool,
        out: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def bias_relu(
        output: int, scalar: int, bias: int, other: int, rows: int, filters: int, device: int, stream: int
    ) -> None: ...
    @staticmethod
    def local_noise(
        output: int, scalar: int, norm: int, sigma: int, shape: _Shape, key: _Key, out: int, device: int, stream: int
    ) -> None: ...
    @staticmethod
    def local_noise_backward(
        grad: int,
        scalar: int,
        norm: int,
        sigma: int,
        shape: _Shape,
        key: _Key,
        sums: int,
        grad_norm: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def weight_noise(
        weight: int, scalar: int, sigma: int, starts: int, filters: int, key: _Key, out: int, device: int, stream: int
    ) -> None: ...
    @staticmethod
    def weight_noise_backward(
        grad: int, scalar: int, starts: int, filters: int, key: _Key, sums: int, device: int, stream: int
    ) -> None: ...
    @staticmethod
    def sym_distances_fast(
        a: _Rows, b: _Rows, counts: _Pair, filters: int, symmetric: bool, live: int, out: int, device: int, stream: int
    ) -> None: ...
    @staticmethod
    def sym_distances_exact(
        a: int,
        b: int,
        exponent_a: int,
        exponent_b: int,
        counts: _Pair,
        filters: int,
        symmetric: bool,
        out: int,
        device: int,
        stream: int,
    ) -> None: ...
