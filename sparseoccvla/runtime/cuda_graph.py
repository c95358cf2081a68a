"""A network as one launch: on a CUDA GPU its kernels are recorded once and replayed on new inputs.

A decoder has thousands of small kernels, and to launch them one by one takes several times as long as they
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Libraries choose their kernels in the first runs.
_WARM_UP = 3


class Replayed:
    """A function of tensors that is recorded at its first call; on a CPU just called.

    Inputs of another shape or type are recorded anew. Whatever the function reads beside its inputs is kept
    as it was when it was recorded.

    Args:
        function: of tensors to tensors; decides nothing by what they hold, copies nothing from the host.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the function says; on a GPU the next call overwrites it.

        Args:
            inputs: of the function; several tensors in the place of one are stacked as its axis 1.
        """
        first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        if first.device.type != "cuda":
            return self._function(*(_whole(part) for part in inputs))
        if self._graph is None or not self._fits(inputs):
            self._record([_whole(part).clone() for part in inputs])
        for kept, part in zip(self._inputs, inputs, strict=True):
            if isinstance(part, Tensor):
                kept.copy_(part)
            else:
                torch.stack(list(part), dim=1, out=kept)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _fits(self, inputs: Sequence[Tensor | Sequence[Tensor]]) -> bool:
        return all(
            (kept.shape, kept.dtype) == _kind(part) for kept, part in zip(self._inputs, inputs, strict=True)
        )

    def _record(self, inputs: list[Tensor]) -> None:
        self._inputs = inputs
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of a composed process go on with their own work meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = self._function(*inputs)


def _whole(part: Tensor | Sequence[Tensor]) -> Tensor:
    return part if isinstance(part, Tensor) else torch.stack(list(part), dim=1)


def _kind(part: Tensor | Sequence[Tensor]) -> tuple[torch.Size, torch.dtype]:
    """Shape and type of an input as the function sees it."""
    if isinstance(part, Tensor):
        return part.shape, part.dtype
    one = part[0]
    return torch.Size([one.shape[0], len(part), *one.shape[1:]]), one.dtype
