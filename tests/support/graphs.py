"""CUDA graphs on the CPU: what runs inside ``torch.cuda.graph`` is recorded, and runs again on the same tensors."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

FORBIDDEN = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::lift_fresh")
"""Operations that read numbers of the GPU, or bring in those of the CPU."""


class Graph:
    """``torch.cuda.CUDAGraph``: it holds the operations and the very tensors that they read and write."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def pool(self):
        return self

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, written in self.calls:
            again = tensors_of(func(*args, **kwargs))
            for old, new in zip(written, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or in place
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """``torch.cuda.graph``; what it records is not computed: a GPU does that when it replays."""

    def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        result = func(*args, **(kwargs or {}))
        written = tensors_of(result)
        read = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
        for tensor in written:
            if tensor.untyped_storage().data_ptr() not in read and tensor.is_floating_point():
                tensor.detach().fill_(torch.nan)
        self.graph.calls.append((func, args, kwargs or {}, written))
        return result


def tensors_of(values):
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


def install(monkeypatch):
    """Replace what `_Recorded` uses of torch.cuda; return the list of the graphs that will be made."""
    made = []

    def make():
        made.append(Graph())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    return made
