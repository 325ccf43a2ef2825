"""Bias, sum and ReLU in one pass: the emulated kernel against torch's own operations, bit for bit."""

import pytest
import torch

from task2vec_ext.kernels.bias_relu import bias_relu
from task2vec_ext.kernels.native import Runtime

pytestmark = pytest.mark.simt

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SIZES = {  # a vector a row; threads that fill no row; more rows than one turn of the threads; more columns than a block
    "one-vector": (2, 8, 3, 5),
    "odd-columns": (1, 24, 3, 3),
    "many-rows": (3, 40, 31, 33),
    "many-columns": (1, 2200, 2, 1),
    "no-sample": (0, 8, 3, 3),
}
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_sum = pytest.mark.parametrize("with_other", [False, True], ids=["bias", "bias-and-sum"])


@pytest.fixture
def runtime(simt):
    return Runtime(simt, 0, 0, 1, True)


def tensors(size, dtype, with_other):
    generator = torch.Generator().manual_seed(0)
    output, other = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    bias = torch.randn(size[1], generator=generator)
    last = (t.to(memory_format=torch.channels_last) for t in (output, other))
    output, other = last
    return output, bias, other if with_other else None


def plainly(output, bias, other):
    total = output + bias.to(output.dtype)[:, None, None]
    return torch.relu(total if other is None else total + other)


@every_dtype
@every_sum
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_kernel_gives_torchs_bits_in_place(size, dtype, with_other, runtime):
    output, bias, other = tensors(size, dtype, with_other)
    expected = plainly(output, bias, other)
    actual = bias_relu(output, bias, other, runtime)
    assert torch.equal(actual, expected)
    assert actual.data_ptr() == output.data_ptr()
    assert not with_other or torch.equal(other, tensors(size, dtype, True)[2])


def test_nan_stays_and_infinity_is_kept(runtime):
    output = torch.tensor([torch.nan, torch.inf, -torch.inf, 1]).reshape(1, 4, 1, 1)
    actual = bias_relu(output, torch.zeros(4), None, runtime).flatten()
    assert actual[0].isnan()
    assert actual[1:].tolist() == [torch.inf, 0, 1]


@every_sum
def test_gradients_and_hooks_are_those_of_torch(with_other, runtime):
    def run(where):
        output, bias, other = tensors((2, 8, 3, 5), torch.float32, with_other)
        leaves = [t.requires_grad_() for t in (output, other) if t is not None]
        convolved, seen = leaves[0] * 2, []  # as a convolution's output: not a leaf, with a hook
        convolved.register_hook(lambda grad: seen.append(grad.clone()))
        result = bias_relu(convolved, bias, other, where)
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
        return [result.detach(), *seen, *(leaf.grad for leaf in leaves)]

    ours, torchs = run(runtime), run(None)
    assert len(ours) == len(torchs) == 3 + with_other
    for actual, expected in zip(ours, torchs, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda output, bias, other: (output.contiguous(), bias, other),
        lambda output, bias, other: (output[:, :6], bias[:6], other[:, :6]),
        lambda output, bias, other: (output.double(), bias, other.double()),
        lambda output, bias, other: (output, bias, other[:, :, :1]),
        lambda output, bias, other: (output, bias, other.double()),
    ],
    ids=["channels-first", "slices", "float64", "broadcast", "two-types"],
)
def test_what_the_kernel_does_not_take_torch_does(change):
    output, bias, other = change(*tensors((2, 8, 3, 5), torch.float32, True))
    expected = plainly(output, bias, other)
    runtime = Runtime(None, 0, 0, 1, True)  # it is not asked
    assert torch.equal(bias_relu(output, bias, other, runtime), expected)
