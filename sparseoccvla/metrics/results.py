"""The format of a published figure: every results file says which model, data, command and versions.

One JSON object per file. `model_id` is that of the manifest (`runtime.manifest`), or NO_MODEL for what no
model took part in (baselines alone, benchmarks of plain code).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparseoccvla.errors import InputError

FORMAT = 1
NO_MODEL = "none"
_LIBRARIES = ("numpy", "scipy", "torch", "transformers", "pycocoevalcap", "nltk", "regex")


class ResultsError(InputError):
    """A results file is missing something or says what cannot be."""


@dataclass(frozen=True)
class DataOrigin:
    """What was scored."""

    name: str  # "world", "nuscenes", ... or a corpus
    version: str  # "v1.0-world", "v1.0-mini", ...
    split: str  # "train", "val", ...
    seeds: tuple[int, ...]  # of generated data and of draws; empty for recorded data


@dataclass(frozen=True)
class Results:
    """Figures and everything needed to have them again."""

    kind: str  # "occupancy", "forecast", "planning", "language", "benchmark", ...
    protocol: str
    model_id: str
    data: DataOrigin
    command: str
    n: int
    skipped: int
    figures: dict[str, Any]  # rows by name for tables: {"model": {...}, "constant_velocity": {...}}
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""

    def __post_init__(self) -> None:
        for name in ("kind", "model_id", "command"):
            if not getattr(self, name):
                raise ResultsError(f"results without {name}: nobody could repeat them")
        if self.n <= 0:
            raise ResultsError(f"results over n = {self.n} samples, wanted at least 1")
        if self.model_id != NO_MODEL and not _is_model_id(self.model_id):
            raise ResultsError(
                f"model_id is {self.model_id!r}, wanted 16 hex digits of a manifest's sha256, or {NO_MODEL!r}"
            )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on, as installed here."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_results(path: Path, results: Results) -> None:
    """Write a file that `read_results` takes, whole or not at all."""
    content = {"format": FORMAT, **asdict(results)}
    content["versions"] = results.versions or library_versions()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.tmp")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_results(path: Path) -> Results:
    """Read and check a results file.

    Raises:
        ResultsError: not JSON, of another format, with a key missing, unknown or of the wrong type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} is not a readable results file: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ResultsError(f"{path} is not a results file of format {FORMAT}; write it again")
    _check_keys(path, "", content, Results)
    _check_keys(path, "data.", content["data"], DataOrigin)
    if not content["versions"]:
        raise ResultsError(f"{path} names no versions; write it again")
    origin = content.pop("data")
    origin["seeds"] = tuple(origin["seeds"])
    return Results(data=DataOrigin(**origin), **content)


def stale_results(paths: Sequence[Path], shipped_model_id: str) -> list[str]:
    """One line for each results file that was made with another model than the shipped one."""
    lines = []
    for path in paths:
        model_id = read_results(path).model_id
        if model_id not in (shipped_model_id, NO_MODEL):
            lines.append(f"{path} is of model {model_id}, shipped is {shipped_model_id}: run make results")
    return lines


def _check_keys(path: Path, prefix: str, content: Any, shape: type) -> None:
    wanted = {item.name for item in fields(shape)}
    found = set(content) if isinstance(content, dict) else set()
    if found != wanted:
        odd = ", ".join(prefix + name for name in sorted(found ^ wanted))
        raise ResultsError(f"{path} lacks, or should not have: {odd}")


def _is_model_id(text: str) -> bool:
    return len(text) == 16 and all(c in "0123456789abcdef" for c in text)
