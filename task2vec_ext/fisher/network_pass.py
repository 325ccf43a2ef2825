"""The network's own part of a batch, forward and backward: as torch runs it, or replayed from CUDA graphs."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch

from .._util.warnings import Task2VecWarning
from ..probe.folding import AGREEMENT, FoldedProbe
from ..probe.probe import frozen
from ..probe.usable import check_eval
from .capture import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from ..probe.layers import Layer
    from ..probe.probe import Probe

Rows: TypeAlias = "Callable[[Tensor, bool], Tensor]"
"""(gradient at the features, whether another one follows) → squared gradients of all filters ``[B, K]`` float64."""

NetworkPass: TypeAlias = "Callable[[Probe, Sequence[Layer], Tensor], AbstractContextManager[tuple[Tensor, Rows]]]"
"""(probe, layers, images) → the images' features, without a graph, and the function for their backward passes."""


def backward(output: Tensor, gradient: Tensor, *, keep: bool = False) -> None:
    """Run the backward pass of `output` from a gradient; given to torch, that would import sympy, for half a second."""
    (output * gradient).sum().backward(retain_graph=keep)


@contextmanager
def network_pass(probe: Probe, layers: Sequence[Layer], images: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Yield features and backward passes (`NetworkPass`), as torch runs them.

    Raises:
        ValueError: If the probe is in train mode.
    """
    check_eval(probe.module)
    with torch.enable_grad(), frozen(probe.module), capture(probe.module, layers, len(images)) as captured:
        features = probe.features(images)

        def rows(gradient: Tensor, more: bool) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):  # of the caller's: it is the network's
                backward(features, gradient.to(features.dtype), keep=more)
                return captured.take().double()

        yield features.detach(), rows


class Replays:
    """A `NetworkPass` for one task on a GPU: batches of one shape are replayed from CUDA graphs, others run as usual.

    The graphs are recorded at the second batch in a row of one shape, and kept if they give what torch gives. If not,
    or if the network cannot be recorded (it reads numbers of the GPU, or memory is short), a warning says so and all
    batches run as usual.

    Args:
        repeat: Whether there may be several backward passes a batch.
    """

    def __init__(self, *, repeat: bool) -> None:
        """Record nothing yet."""
        self._repeat = repeat
        self._last: torch.Size | None = None
        self._recorded: _Recorded | None = None
        self._refused = False

    @property
    def recorded(self) -> bool:
        """Whether there are graphs."""
        return self._recorded is not None

    def __call__(
        self, probe: Probe, layers: Sequence[Layer], images: Tensor
    ) -> AbstractContextManager[tuple[Tensor, Rows]]:
        """Return the pass of a batch; probe and layers are those of the task."""
        if self._recorded is None and images.shape == self._last and not self._refused:
            try:
                self._recorded = _Recorded(probe, layers, images, repeat=self._repeat)
            except RuntimeError as error:
                self._refused = True
                why = str(error).partition("\n")[0]
                warnings.warn(
                    f"fisher_embed: {probe.name} runs without CUDA graphs, which could not be recorded ({why}); leave "
                    "cuda_graphs out",
                    Task2VecWarning,
                    stacklevel=2,
                )
        self._last = images.shape
        if self._recorded is not None and self._recorded.fits(images):
            return self._recorded.replay(images)
        return network_pass(probe, layers, images)


class _Recorded:
    """The pass over batches of one shape as two CUDA graphs: forward, and backward from a gradient at the features."""

    def __init__(self, probe: Probe, layers: Sequence[Layer], images: Tensor, *, repeat: bool) -> None:
        """Record, and compare with the plain pass; raise RuntimeError if that fails. A first batch has warmed up."""
        layout = torch.channels_last if isinstance(probe, FoldedProbe) else torch.preserve_format
        self._images = images.clone(memory_format=layout)  # what the graphs read; `replay` fills it
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        own, mode = torch.cuda.Stream(images.device), "thread_local"  # other threads may use the GPU meanwhile
        with ExitStack() as stack:
            # A recording that fails leaves its own stream the current one.
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream(images.device)))
            with torch.cuda.graph(self._forward, stream=own, capture_error_mode=mode):
                self._features, rows = stack.enter_context(network_pass(probe, layers, self._images))
            self._gradient = torch.zeros_like(self._features)
            with torch.cuda.graph(self._backward, self._forward.pool(), own, capture_error_mode=mode):
                self._rows = rows(self._gradient, repeat)
        direction = torch.linspace(-1, 1, self._gradient[0].numel(), device=images.device).view_as(self._gradient[0])
        gradient = direction.expand_as(self._gradient)
        found = []
        for run in (network_pass(probe, layers, images), self.replay(images)):
            with run as (features, rows):
                found.append((features.clone(), rows(gradient, False)))
        for expected, actual in zip(*found, strict=True):
            if not (actual - expected).norm() <= AGREEMENT * expected.norm():
                raise RuntimeError("replayed, they give other numbers: is the network's output random?")

    def fits(self, images: Tensor) -> bool:
        return images.shape == self._images.shape

    @contextmanager
    def replay(self, images: Tensor) -> Iterator[tuple[Tensor, Rows]]:
        """Yield what `network_pass` does; the features are overwritten by the next batch."""
        self._images.copy_(images)
        self._forward.replay()

        def rows(gradient: Tensor, more: bool) -> Tensor:
            self._gradient.copy_(gradient)
            self._backward.replay()
            return self._rows.clone()  # the next one overwrites it

        yield self._features, rows
