"""Fixtures of every group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that want it carry the mark `real_data` and skip without it."""
    folder = os.environ.get("SPARSEOCCVLA_REAL_DATA", "")
    if not folder:
        pytest.skip("SPARSEOCCVLA_REAL_DATA names no folder of real data")
    return Path(folder)
