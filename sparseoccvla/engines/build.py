"""ONNX to TensorRT engines, on any machine: a target is named, not present."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparseoccvla.data.output import exclusive
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.engine_record import (
    EngineRecord,
    Precision,
    State,
    Verified,
    check_engine,
    engine_for,
    read_records,
    write_whole,
)
from sparseoccvla.runtime.exported import GRAPHS, Exported, check_equal, read_export
from sparseoccvla.runtime.manifest import ModelError, sha256_of
from sparseoccvla.runtime.tensorrt_library import (
    gpu_target,
    library_version,
    make_logger,
    tensorrt_library,
)

PROFILE = "static"
_LATENCY_RUNS = 50


def build(
    onnx: Path, out: Path, targets: Sequence[str], precision: Precision, graphs: Sequence[str] = GRAPHS
) -> list[EngineRecord]:
    """Build every graph of an export for every target; what is there already is kept.

    Args:
        onnx: folder of `sparseoccvla export`.
        out: folder of engines, new or of an earlier build.
        targets: "sm86" and the like; empty: the GPU of this machine.
        precision: of the arithmetic; inputs and outputs stay fp32.
        graphs: which.

    Raises:
        InputError: no TensorRT, an unknown target, a damaged export, or a graph TensorRT does not take.
    """
    library = tensorrt_library()
    exported = read_export(onnx)
    chosen = _targets(targets, library)
    out.mkdir(parents=True, exist_ok=True)
    records = []
    with exclusive(out, out):
        _copy_export(exported, out)
        for name in graphs:
            path = exported.file(name)
            for target in chosen:
                record = EngineRecord(
                    name, target, precision, PROFILE, exported.onnx_sha256(name), library_version(library),
                    "", 0, "", 0.0,
                )  # fmt: skip
                records.append(_kept(record, out) or _build_one(record, path, out, library))
    return records


def verify(folder: Path) -> list[EngineRecord]:
    """Run every engine for this machine's GPU against torch's results, time it, and say so in its record.

    Raises:
        ModelError: an engine is bad, or does not say what torch says.
        InputError: no GPU, no TensorRT, or no engine for this GPU.
    """
    import torch

    from sparseoccvla.runtime.tensorrt_backend import TOLERANCES, TensorRtGraph

    library, target = tensorrt_library(), gpu_target()
    if not target:
        raise InputError("engine verify runs on the GPU that the engines are for; there is none here")
    exported = read_export(folder)
    verified = []
    for name in exported.graphs:
        record, path = engine_for(exported, name, target, library_version(library))
        graph = TensorRtGraph(path, exported.graphs[name], library, torch.device("cuda"))
        tolerance = TOLERANCES[Precision(record.precision)]
        errors = check_equal("engine verify", graph, exported, name, tolerance)
        inputs, took_ms = exported.fixed_inputs(name), []
        for _ in range(_LATENCY_RUNS):
            start = time.perf_counter()
            graph.run(inputs)
            took_ms.append((time.perf_counter() - start) * 1e3)
        p50, p95 = np.percentile(took_ms, (50, 95)).round(3)
        record = record.as_verified(Verified(torch.cuda.get_device_name(), errors, float(p50), float(p95)))
        record.write(folder)
        verified.append(record)
    return verified


def check(folder: Path) -> list[EngineRecord]:
    """Records of a folder whose every engine is whole and belongs to its export and to this TensorRT.

    Raises:
        ModelError: the first engine that is not, or a graph without any.
    """
    exported = read_export(folder)
    try:
        library = library_version(tensorrt_library())
    except InputError:
        library = ""  # files can be checked without it
    records = read_records(folder)
    for record in records:
        check_engine(record, exported, library)
    without = sorted(set(exported.graphs) - {record.graph for record in records})
    if without:
        raise ModelError(
            f"{folder} has no engine of {', '.join(without)}; build it: sparseoccvla engine build"
        )
    return records


def _targets(targets: Sequence[str], library: Any) -> list[str]:
    """Names of targets, checked against what this TensorRT can build for."""
    known = getattr(library, "ComputeCapability", None)
    names = [name.lower() for name in dir(known) if name.startswith("SM")] if known else []
    here = gpu_target()
    if not targets:
        if not here:
            raise InputError(f"no GPU here to build for; name targets: --targets {','.join(names) or 'none'}")
        return [here]
    for target in targets:
        if target not in names and target != here:
            raise InputError(
                f"{library_version(library)} can't build for {target!r} here, "
                f"only for {', '.join(names) or here or 'nothing: it needs the GPU'}"
            )
    return list(targets)


def _kept(wanted: EngineRecord, folder: Path) -> EngineRecord | None:
    """The same engine, if it is there and whole."""
    for record in read_records(folder):
        if record.stem == wanted.stem:
            path = folder / f"{record.stem}.engine"
            if path.is_file() and sha256_of(path) == record.engine_sha256:
                return record
    return None


def _build_one(record: EngineRecord, onnx: Path, folder: Path, library: Any) -> EngineRecord:
    start = time.monotonic()
    if Precision(record.precision).is_half(record.graph):
        onnx = _in_half(onnx, folder)
    heard: list[str] = []
    logger = make_logger(library, heard)
    builder = library.Builder(logger)
    # Every tensor keeps the type that the graph gives it: precision is decided there, not by the builder.
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(f"{record.library} can't read {onnx}: {errors}; export again with this version")
    config = builder.create_builder_config()
    if hasattr(library, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, record.target.upper()), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(
            f"{record.library} can't build {record.graph} for {record.target}: "
            f"{heard[-1] if heard else 'no reason given'}"
        )
    content = memoryview(engine)
    path = folder / f"{record.stem}.engine"
    write_whole(path, content)
    built = EngineRecord(
        record.graph, record.target, record.precision, record.profile, record.onnx_sha256, record.library,
        sha256_of(path), len(content), platform.platform(), round(time.monotonic() - start, 2), State.BUILT,
    )  # fmt: skip
    built.write(folder)
    return built


def _in_half(onnx: Path, folder: Path) -> Path:
    """The graph with fp16 inside and its own types outside, in a file that the next build overwrites."""
    import onnx as onnx_library
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx_library.load(onnx)
    half = convert_float_to_float16(model, keep_io_types=True)
    path = folder / f".{onnx.stem}.half.onnx"
    onnx_library.save(half, path)
    return path


def _copy_export(exported: Exported, folder: Path) -> None:
    """Engines travel with what tells whose they are and what they must say."""
    if folder.resolve() == exported.folder.resolve():
        return
    for name in ("export.json", *(f"{graph}.npz" for graph in exported.graphs)):
        partial = folder / f".{name}.partial"
        shutil.copyfile(exported.folder / name, partial)
        partial.replace(folder / name)
