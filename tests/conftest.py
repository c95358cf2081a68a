"""Fixtures of every group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that want it carry the mark `real_data` and skip without it."""
    folder = os.environ.get("SPARSEOCCVLA_REAL_DATA", "")
    if not folder:
        pytest.skip("SPARSEOCCVLA_REAL_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small renderings are fastest with one thread, and far slower with two where something else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
