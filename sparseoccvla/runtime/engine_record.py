"""What is known about an engine: the record that lies beside it, and when it may be loaded.

    E/export.json and E/GRAPH.npz         of the export that the engines were built from
    E/GRAPH-TARGET-PRECISION-KEY.engine   and .json, its record

An engine is BUILT anywhere and VERIFIED on the GPU it is for. No TensorRT and no torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from sparseoccvla.runtime.exported import Exported
from sparseoccvla.runtime.manifest import ModelError, sha256_of

FORMAT = 1


class State(StrEnum):
    """How far an engine has come."""

    BUILT = "BUILT"
    VERIFIED = "VERIFIED"


class Precision(StrEnum):
    """fp32; mixed: the backbone in fp16, where little is lost; fp16: everything."""

    FP32 = "fp32"
    MIXED = "mixed"
    FP16 = "fp16"

    def is_half(self, graph: str) -> bool:
        return self is Precision.FP16 or (self is Precision.MIXED and graph == "backbone")


@dataclass(frozen=True)
class Verified:
    """What a run on the target gave."""

    gpu: str
    errors: dict[str, float]  # of each output, see `exported.relative_errors`
    latency_ms_p50: float
    latency_ms_p95: float


@dataclass(frozen=True)
class EngineRecord:
    """One engine."""

    graph: str
    target: str  # "sm89"
    precision: str
    profile: str  # "static": one set of shapes
    onnx_sha256: str
    library: str  # name and version
    engine_sha256: str
    engine_bytes: int
    built_on: str
    build_s: float
    state: str = State.BUILT
    verified: Verified | None = None
    format: int = FORMAT

    @property
    def key(self) -> str:
        return engine_key(self.onnx_sha256, self.library, self.target, self.precision, self.profile)

    @property
    def stem(self) -> str:
        return f"{self.graph}-{self.target}-{self.precision}-{self.key[:12]}"

    def write(self, folder: Path) -> None:
        """Put the record beside its engine, whole or not at all."""
        write_whole(folder / f"{self.stem}.json", (json.dumps(asdict(self), indent=1) + "\n").encode())

    def as_verified(self, verified: Verified) -> Self:
        return replace(self, state=State.VERIFIED, verified=verified)


def engine_key(onnx_sha256: str, library: str, target: str, precision: str, profile: str) -> str:
    """Hex sha256 of everything that makes two engines different."""
    return hashlib.sha256("\n".join((onnx_sha256, library, target, precision, profile)).encode()).hexdigest()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that no reader ever sees a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_records(folder: Path) -> list[EngineRecord]:
    """Every record of a folder, by name.

    Raises:
        ModelError: a record that is none.
    """
    records = []
    for path in sorted(folder.glob("*-*.json")):
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ModelError(f"{path} has format {content['format']!r}, wanted {FORMAT}; build again")
            verified = content.pop("verified")
            records.append(EngineRecord(**content, verified=Verified(**verified) if verified else None))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is no record of an engine: {type(error).__name__} {error}; remove it and its "
                f".engine, then build again: {build_command(folder)}"
            ) from error
    return records


def build_command(folder: Path, target: str = "TARGET") -> str:
    """What mends an engine."""
    return f"sparseoccvla engine build --onnx EXPORT --out {folder} --targets {target}"


def check_engine(record: EngineRecord, exported: Exported, library: str) -> Path:
    """Path of an engine that is whole and belongs to an export and a TensorRT.

    Args:
        record: of the engine.
        exported: of the folder it lies in.
        library: name and version of the TensorRT that will load it; "" if none is here.

    Raises:
        ModelError: the file is missing, changed or only half there; or it was built from another ONNX or by
            another TensorRT. The text says what was found, what was wanted, and the command that mends it.
    """
    path = exported.folder / f"{record.stem}.engine"
    mend = f"rebuild it: {build_command(exported.folder, record.target)} --precision {record.precision}"
    if not path.is_file():
        raise ModelError(f"{path} is missing, its record is there; {mend}")
    size = path.stat().st_size
    if size != record.engine_bytes:
        raise ModelError(
            f"{path} has {size} bytes, its record says {record.engine_bytes}: only half copied; {mend}"
        )
    got = sha256_of(path)
    if got != record.engine_sha256:
        raise ModelError(
            f"{path} has sha256 {got[:16]}, its record says {record.engine_sha256[:16]}: changed; {mend}"
        )
    wanted = exported.onnx_sha256(record.graph)
    if record.onnx_sha256 != wanted:
        raise ModelError(
            f"{path} was built from ONNX {record.onnx_sha256[:16]}, the export beside it is {wanted[:16]}: "
            f"another model or export; {mend}"
        )
    if library and record.library != library:
        raise ModelError(f"{path} was built by {record.library}, here is {library}; {mend}")
    return path


def engine_for(exported: Exported, graph: str, target: str, library: str) -> tuple[EngineRecord, Path]:
    """The one engine of a graph for a GPU, checked.

    Raises:
        ModelError: none for this GPU, several, or a bad one.
    """
    folder = exported.folder
    records = [record for record in read_records(folder) if record.graph == graph]
    fitting = [record for record in records if record.target == target]
    if not fitting:
        found = ", ".join(sorted({record.target for record in records})) or "none"
        raise ModelError(
            f"{folder} has no engine of {graph} for this GPU, {target}; found for: {found}. "
            f"Build it: {build_command(folder, target)}"
        )
    if len(fitting) > 1:
        listed = ", ".join(record.stem for record in fitting)
        raise ModelError(f"{folder} has several engines of {graph} for {target}: {listed}; keep one")
    return fitting[0], check_engine(fitting[0], exported, library)
