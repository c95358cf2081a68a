"""The tiny model as graphs, exported once for all tests of a run: it takes a while."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from sparseoccvla.config import ModelSource
from sparseoccvla.engines.export import export
from sparseoccvla.runtime.exported import Exported
from sparseoccvla.runtime.manifest import find_model

_kept: list[tempfile.TemporaryDirectory[str]] = []  # goes with the process


@cache
def tiny_export() -> tuple[ModelSource, Exported]:
    """A copy of models/tiny, which nobody changes meanwhile, to be run by torch; and its export."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_export_")
    _kept.append(folder)
    model = Path(folder.name) / "model"
    shutil.copytree(find_model("tiny"), model)
    return ModelSource(model=str(model), threads=1), export(str(model), Path(folder.name) / "export")
