"""A recorded function says what the function says, of whatever it is given."""

import pytest
import torch
from torch import Tensor

from sparseoccvla.runtime.cuda_graph import Replayed

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def sums(levels: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, T, n) over T, and with other (B, n)."""
    return levels.sum(dim=1), levels.sum(dim=1) * other


@pytest.mark.parametrize("device", DEVICES)
def test_every_call_answers_its_own_inputs_and_shapes(device: str) -> None:
    replayed = Replayed(sums)
    for width in (3, 3, 5, 3):
        frames = [torch.randn(2, width, device=device) for _ in range(4)]
        other = torch.randn(2, width, device=device)
        said = replayed(frames, other)
        for part, wanted in zip(said, sums(torch.stack(frames, dim=1), other), strict=True):
            assert torch.allclose(part, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_answer_is_overwritten_by_the_next() -> None:
    replayed = Replayed(lambda x: (x + 1,))
    (first,) = replayed(torch.zeros(3, device="cuda"))
    assert first.tolist() == [1, 1, 1]
    replayed(torch.ones(3, device="cuda"))
    assert first.tolist() == [2, 2, 2]
