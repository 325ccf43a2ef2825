import pytest
import torch
from cases import CASES, LARGE_CASES, TOLERANCE, Case, assert_near, every_case, every_case_and_route, oracle
from torch.nn import functional as F

import task2vec_ext
from task2vec_ext import _C, filter_grad_sq
from task2vec_ext.kernels import cpu, reference
from task2vec_ext.kernels.geometry import as_convolution
from task2vec_ext.kernels.routes import CPU_ROUTES

every_route = pytest.mark.parametrize("route", CPU_ROUTES)
SIMPLE = CASES[0]


@every_case_and_route("cpu", CASES + LARGE_CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_every_route_equals_autograd_at_batch_size_one(case, route, dtype):
    actual = filter_grad_sq(*case.tensors(dtype), **case.arguments(), route=route)
    assert actual.dtype == dtype
    assert_near(actual, oracle(case), TOLERANCE[dtype])


@every_case_and_route("cpu", CASES + LARGE_CASES)
@pytest.mark.parametrize("name", _C.cpu.instruction_sets())
def test_every_instruction_set_that_this_processor_has(case, route, name):
    x, delta = case.tensors(torch.float32)
    try:
        _C.cpu.use_instruction_set(name)
        actual = filter_grad_sq(x, delta, **case.arguments(), route=route)
    finally:
        _C.cpu.use_instruction_set(_C.cpu.instruction_sets()[0])
    assert_near(actual, oracle(case), TOLERANCE[torch.float32])


@every_case
def test_reference_by_unfold_and_einsum_equals_autograd(case):
    x, delta = case.tensors()
    arguments = case.arguments()
    if arguments["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(arguments["dilation"], arguments["weight_shape"][2:], strict=True)]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    if isinstance(arguments["padding"], str):
        arguments["padding"] = 0
    assert_near(reference.filter_grad_sq(x, delta, **arguments), oracle(case), TOLERANCE[torch.float64])


@every_route
@pytest.mark.parametrize("layout", ["channels-last", "slice", "transposed", "expanded"])
def test_any_layout_gives_the_same_numbers(route, layout):
    x, delta = SIMPLE.tensors()
    if layout == "channels-last":
        x, delta = (t.to(memory_format=torch.channels_last) for t in (x, delta))
    elif layout == "slice":
        x = F.pad(x, (2, 1, 3, 0))[:, :, 3:, 2:-1]
        delta = torch.cat([delta, delta], 1)[:, delta.shape[1] :]
    elif layout == "transposed":
        x, delta = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (x, delta))
    else:
        x, delta = x[:1].expand_as(x), delta[:1].expand_as(delta)
    expected = reference.filter_grad_sq(x, delta, **SIMPLE.arguments())
    assert_near(filter_grad_sq(x, delta, **SIMPLE.arguments(), route=route), expected, TOLERANCE[torch.float64])


@every_case
def test_direct_route_cut_into_filters_gives_the_same_numbers(case, monkeypatch):
    monkeypatch.setattr(cpu, "WORKSPACE_BYTES", 1)
    actual = filter_grad_sq(*case.tensors(), **case.arguments(), route="direct")
    assert_near(actual, oracle(case), TOLERANCE[torch.float64])


@pytest.mark.parametrize("route", ["direct", "shifted_gram"])
@pytest.mark.parametrize("positions", [(), (1,), (7,), (2, 3)], ids=["vector", "one", "sequence", "grid"])
def test_linear_layers_by_every_route(route, positions):
    x = torch.randn(4, *positions, 6, dtype=torch.float64)
    delta = torch.randn(4, *positions, 5, dtype=torch.float64)
    gradient = torch.einsum("nto,nti->noi", delta.reshape(4, -1, 5), x.reshape(4, -1, 6))
    actual = filter_grad_sq(x, delta, (5, 6), route=route)
    assert_near(actual, gradient.square().sum(-1), TOLERANCE[torch.float64])


@pytest.mark.parametrize("positions", [(), (7,), (2, 3)], ids=["vector", "sequence", "grid"])
def test_a_linear_layers_tensors_are_read_where_they_are(positions):
    x, delta = torch.randn(4, *positions, 6), torch.randn(4, *positions, 5)
    images = as_convolution(x, delta, (5, 6), 1, 0, 1)[:2]
    for image, tensor in zip(images, (x, delta), strict=True):
        assert image.data_ptr() == tensor.data_ptr()
        assert image.shape[1] == tensor.shape[-1]
        assert image.is_contiguous(memory_format=torch.channels_last)


@every_route
def test_no_samples_give_an_empty_result(route):
    x, delta = (t[:0] for t in SIMPLE.tensors())
    assert filter_grad_sq(x, delta, **SIMPLE.arguments(), route=route).shape == (0, SIMPLE.filters)


@every_route
def test_the_same_call_gives_the_same_bits(route):
    x, delta = Case("", 32, 32, (14, 14), (3, 3), samples=4, options={"padding": 1}).tensors(torch.float32)
    first, second = (filter_grad_sq(x, delta, (32, 32, 3, 3), padding=1, route=route) for _ in range(2))
    assert torch.equal(first, second)


@every_case_and_route("cpu", [c for c in CASES if c.name in ("conv3x3-p1", "depthwise3x3", "conv1x1-s2")])
def test_opcheck(case, route):
    arguments = case.arguments()
    lists = [list(arguments[key]) for key in ("weight_shape", "stride", "padding", "dilation")]
    operator = torch.ops.task2vec_ext.filter_grad_sq.default
    inputs = case.tensors(torch.float32)
    torch.library.opcheck(operator, (*inputs, *lists, arguments["groups"], route))
    torch.library.opcheck(
        operator,
        (*(t.requires_grad_() for t in inputs), *lists, arguments["groups"], route),
        # Its last part runs a backward pass, which this operator refuses by design (tested below).
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic):
    def square_root(x, delta):
        return filter_grad_sq(x * 1, delta, (6, 5, 3, 3), padding="same").sqrt()

    torch._dynamo.reset()
    compiled = torch.compile(square_root, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x, delta = SIMPLE.tensors(torch.float32)
    assert_near(compiled(x, delta), square_root(x, delta), 1e-6)


def test_a_derivative_is_refused():
    x, delta = SIMPLE.tensors()
    result = filter_grad_sq(x.requires_grad_(), delta, **SIMPLE.arguments())
    with pytest.raises(NotImplementedError, match=r"filter_grad_sq: it has no derivative .*reference"):
        result.sum().backward()


@every_route
def test_autocast_does_not_narrow_what_the_routes_compute(route):
    x, delta = SIMPLE.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = filter_grad_sq(x, delta, **SIMPLE.arguments(), route=route)
    assert_near(actual, oracle(SIMPLE), TOLERANCE[torch.float32])


@pytest.mark.parametrize("which", ["input", "grad_output"])
def test_a_forward_mode_derivative_is_refused_too(which):
    tensors = dict(zip(("input", "grad_output"), SIMPLE.tensors(), strict=True))

    def norms(tensor):
        return filter_grad_sq(**{**tensors, which: tensor}, **SIMPLE.arguments())

    tensor = tensors[which]
    with pytest.raises(NotImplementedError, match="it has no derivative"):
        torch.func.jvp(norms, (tensor,), (torch.ones_like(tensor),))


def test_integers_of_any_kind_are_parameters():
    import numpy as np

    x, delta = SIMPLE.tensors()
    arguments = {
        **SIMPLE.arguments(),
        "padding": np.int64(1),
        "stride": torch.tensor(1),
        "weight_shape": torch.Size((6, 5, 3, 3)),
    }
    assert_near(filter_grad_sq(x, delta, **arguments), oracle(SIMPLE), TOLERANCE[torch.float64])


def test_calls_under_no_grad_and_on_detached_inputs_do_not_require_grad():
    x, delta = SIMPLE.tensors()
    with torch.no_grad():
        assert not filter_grad_sq(x.requires_grad_(), delta, **SIMPLE.arguments()).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"grad_output": torch.zeros(2, 6, 5, 5)},
            ValueError,
            r"expected grad_output of shape \[2, 6, 7, 7\].*got \[2, 6, 5, 5\]",
        ),
        ({"grad_output": torch.zeros(3, 6, 7, 7)}, ValueError, "expected grad_output of shape"),
        ({"grad_output": torch.zeros(2, 6, 7, 7).double()}, TypeError, "one dtype.*float32 and torch.float64"),
        ({"weight_shape": (6, 4, 3, 3)}, ValueError, r"weight_shape \[6, 4, 3, 3\]"),
        ({"weight_shape": (6, 5, 3)}, ValueError, "weight_shape of 4 numbers"),
        ({"groups": 2}, ValueError, "groups 2"),
        ({"groups": 0}, ValueError, "groups 0"),
        ({"stride": 0}, ValueError, "stride as two integers from 1"),
        ({"padding": -1}, ValueError, "padding as two integers from 0"),
        ({"padding": (1, 1, 1)}, ValueError, "padding as two integers"),
        ({"padding": "reflect"}, ValueError, "'valid', or 'same'"),
        ({"padding": "same", "stride": 2}, ValueError, "'same' with stride 1"),
        ({"route": "fast"}, ValueError, "route 'auto' or one of"),
        ({"weight_shape": (6, 5)}, ValueError, "Linear layer"),
        ({"weight_shape": (6, 5, 9, 9), "padding": 0}, ValueError, "expected grad_output of shape"),
        ({"weight_shape": (6, 0, 3, 3), "input": torch.zeros(2, 0, 7, 7)}, ValueError, "C_out a multiple of"),
        ({"weight_shape": (7, 5, 3, 3), "groups": 2, "input": torch.zeros(2, 10, 7, 7)}, ValueError, "a multiple of"),
        ({"input": torch.zeros(2, 5, 0, 7), "padding": 4}, ValueError, "expected grad_output of shape"),
        ({"padding": "same", "weight_shape": (6, 5, 3)}, ValueError, "weight_shape of 4 numbers"),
        ({"padding": "same", "dilation": (1, 1, 1)}, ValueError, "dilation as two integers"),
        ({"stride": 1.0}, TypeError, "stride as an integer or two, got 1.0"),
        ({"padding": None}, TypeError, "padding as an integer or two, got None"),
        ({"dilation": 2**40}, ValueError, "dilation as two integers from 1 to 2³¹"),
        ({"grad_output": torch.zeros(2, 6, 7, 7, device="meta")}, ValueError, "on one device"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {
        "input": torch.zeros(2, 5, 7, 7),
        "grad_output": torch.zeros(2, 6, 7, 7),
        "weight_shape": (6, 5, 3, 3),
        "padding": 1,
    }
    with pytest.raises(error, match="(?s)filter_grad_sq: .*" + message):
        filter_grad_sq(**{**arguments, **change})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_cpu_refuses_dtypes_it_has_no_loops_for(dtype):
    x, delta = (t.to(dtype) for t in SIMPLE.tensors())
    with pytest.raises(TypeError, match="expected float32 or float64 tensors on cpu"):
        filter_grad_sq(x, delta, **SIMPLE.arguments())


def test_the_operator_itself_knows_its_routes():
    with pytest.raises(ValueError, match="'auto' or one of"):
        torch.ops.task2vec_ext.filter_grad_sq(
            torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), [1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1, "fast"
        )


def test_the_operator_checks_what_the_wrapper_does_not_see():
    with pytest.raises(ValueError, match="expected grad_output"):
        torch.ops.task2vec_ext.filter_grad_sq(
            torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), [1, 1, 3, 3], [1, 1], [0, 0], [1, 1], 1, "auto"
        )


def test_build_info_names_compiler_and_version():
    info = task2vec_ext.build_info()
    assert info.compiler.split()[0] in ("gcc", "clang", "msvc")
    assert info.version.count(".") == 2
    assert (info.cuda_version is None) == (info.cuda_architectures is None)
