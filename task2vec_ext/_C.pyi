"""The native module (python/module.cpp): addresses, sizes and strides in, nothing out."""

from collections.abc import Sequence

compiler: str
openmp: int | None
cuda_version: str | None
cuda_architectures: str | None
noise_tile: int
noise_filters: int

def philox(key: int, counter: Sequence[int]) -> list[int]: ...

class Conv:
    def __init__(
        self,
        samples: int,
        groups: int,
        group_channels: int,
        group_filters: int,
        size: Sequence[int],
        out_size: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None: ...

def filter_grad_sq_direct_f64(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def scratch_peak() -> int: ...
def filter_grad_sq_direct_f32(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def filter_grad_sq_winograd_f32(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def filter_grad_sq_winograd_f64(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def filter_grad_sq_shifted_gram_f32(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def filter_grad_sq_shifted_gram_f64(
    input: int, input_strides: Sequence[int], grad_output: int, grad_strides: Sequence[int], conv: Conv, out: int
) -> None: ...
def sym_distances_fast(
    a: int, b: int, counts: Sequence[int], filters: int, shift: int, symmetric: bool, out: int
) -> None: ...
def sym_distances_exact(
    a: int,
    b: int,
    exponent_a: int,
    exponent_b: int,
    counts: Sequence[int],
    filters: int,
    symmetric: bool,
    out: int,
) -> None: ...
def local_noise_f32(
    output: int, norm: int, sigma: int, shape: tuple[int, int, int, bool, bool], key: tuple[int, int, int], out: int
) -> None: ...
def local_noise_backward_f32(
    grad: int,
    norm: int,
    sigma: int,
    shape: tuple[int, int, int, bool, bool],
    key: tuple[int, int, int],
    sums: int,
    grad_norm: int,
) -> None: ...
def weight_noise_f32(
    weight: int, sigma: int, starts: int, filters: int, key: tuple[int, int, int], out: int
) -> None: ...
def weight_noise_backward_f32(grad: int, starts: int, filters: int, key: tuple[int, int, int], sums: int) -> None: ...
def local_noise_f64(
    output: int, norm: int, sigma: int, shape: tuple[int, int, int, bool, bool], key: tuple[int, int, int], out: int
) -> None: ...
def local_noise_backward_f64(
    grad: int,
    norm: int,
    sigma: int,
    shape: tuple[int, int, int, bool, bool],
    key: tuple[int, int, int],
    sums: int,
    grad_norm: int,
) -> None: ...
def weight_noise_f64(
    weight: int, sigma: int, starts: int, filters: int, key: tuple[int, int, int], out: int
) -> None: ...
def weight_noise_backward_f64(grad: int, starts: int, filters: int, key: tuple[int, int, int], sums: int) -> None: ...
