"""The tiny model as graphs, exported once for all tests of a run: it takes a while."""

import tempfile
from functools import cache
from pathlib import Path

from sparseoccvla.engines.export import export
from sparseoccvla.runtime.exported import Exported


@cache
def tiny_export() -> Exported:
    """An export of models/tiny in a folder that goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_export_")
    exported = export("tiny", Path(folder.name) / "tiny")
    _kept.append(folder)
    return exported


_kept: list[tempfile.TemporaryDirectory[str]] = []
