import os
from types import SimpleNamespace

import emulation
import pytest
import torch

from task2vec_ext import Task2VecWarning
from task2vec_ext.kernels import native


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("80-real,90", (8, 0), True),
        ("80-real,90", (8, 6), True),  # machine code of 8.0 runs on 8.x
        ("80-real,90", (8, 9), True),
        ("80-real,90", (9, 0), True),
        ("80-real,90", (12, 0), True),  # from the PTX of 9.0
        ("80-real,90", (7, 5), False),
        ("90-real", (8, 0), False),
        ("90-real", (10, 0), False),
        ("86-real", (8, 0), False),
        ("75-virtual", (7, 0), False),
        ("75-virtual", (9, 0), True),
        ("120", (12, 1), True),
        (None, (9, 0), False),
        ("simt", (9, 0), False),
    ],
)
def test_which_gpus_a_build_covers(architectures, capability, covered):
    assert native.covers(architectures, capability) is covered


def test_the_sources_travel_with_the_package():
    folder = native.source_folder()
    assert {path.name for path in (folder / "csrc").iterdir()} >= {"kernels.h", "philox.h", "cpu", "cuda"}
    assert {path.name for path in (folder / "csrc" / "cuda").iterdir()} >= {"device.h", "mma.cuh", "pairwise.cu"}
    assert (folder / "python" / "module.cpp").is_file()


def test_without_nvcc_the_fallback_says_what_to_install(monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    native.compile_kernels.cache_clear()
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5.*nvcc.*CUDA_HOME, or use device='cpu'"):
        native.compile_kernels((7, 5))


def test_a_gpu_the_build_covers_needs_no_compiler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    built = SimpleNamespace(cuda_architectures="80-real,90", cuda=object())
    monkeypatch.setattr(native, "_C", built)
    assert native.cuda_kernels(torch.device("cuda", 0)) is built.cuda


def test_a_kernel_runs_on_the_current_stream_and_the_gpu_is_looked_up_once(monkeypatch):
    asked, streams = [], iter([11, 12])
    properties = SimpleNamespace(multi_processor_count=132, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: asked.append(device) or properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=next(streams)))
    built = SimpleNamespace(cuda_architectures="90", cuda=object())
    monkeypatch.setattr(native, "_C", built)
    native._found.cache_clear()
    first, second = (native.Runtime.of(SimpleNamespace(device=torch.device("cuda", 1))) for _ in range(2))
    native._found.cache_clear()
    assert first == (built.cuda, 1, 11, 132, True)
    assert second == first._replace(stream=12)
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.slow
def test_the_fallback_compiles_the_kernels_for_a_gpu_the_build_does_not_cover(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    tools = {
        "nvcc": cpp_extension.CUDA_HOME,
        "ninja": cpp_extension.is_ninja_available(),
        "C++": not emulation.missing(),
    }
    if missing := [tool for tool, found in tools.items() if not found]:
        pytest.skip(f"to compile with: no {' and no '.join(missing)}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("MAX_JOBS", "2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    native.compile_kernels.cache_clear()
    with pytest.warns(Task2VecWarning, match=r"compiling the CUDA kernels for compute capability 7\.5"):
        kernels = native.cuda_kernels(torch.device("cuda", 0))
    assert callable(kernels.filter_grad_sq_direct)
    module = native.compile_kernels((7, 5))  # the same again, not compiled twice
    assert module.cuda is kernels
    assert native.covers(module.cuda_architectures, (7, 5))
    assert not hasattr(module, "cpu")


def test_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("TASK2VEC_A", "before")
    monkeypatch.delenv("TASK2VEC_B", raising=False)

    def fail_inside():
        with native._environment(TASK2VEC_A="x", TASK2VEC_B="y"):
            assert (os.environ["TASK2VEC_A"], os.environ["TASK2VEC_B"]) == ("x", "y")
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert os.environ["TASK2VEC_A"] == "before"
    assert "TASK2VEC_B" not in os.environ
