"""The native module (python/module.cpp): addresses, sizes and strides in, nothing out."""

from collections.abc import Sequence

compiler: str
openmp: int | None
cuda_version: str | None
cuda_architectures: str | None

class GramWindow:
    def __init__(
        self,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        gram_width: int,
        out_width: int,
    ) -> None: ...

def window_sum_f32(
    gram: int, out: int, matrices: int, positions: Sequence[int], pixels: Sequence[int], window: GramWindow
) -> None: ...
def window_sum_f64(
    gram: int, out: int, matrices: int, positions: Sequence[int], pixels: Sequence[int], window: GramWindow
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
