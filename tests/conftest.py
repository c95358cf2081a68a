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


@pytest.fixture(scope="session")
def untrained_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without weights: a backend gives it random ones of its seed."""
    from tools.make_untrained_models import TINY, write_model

    folder = tmp_path_factory.mktemp("untrained") / "tiny"
    write_model(folder, TINY, "tests")
    return folder


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small renderings are fastest with one thread, and far slower with two where something else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
