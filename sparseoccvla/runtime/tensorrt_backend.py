"""Exported graphs on a GPU through TensorRT. Engines are built and verified elsewhere, never in here.

Buffers are torch tensors on the GPU with fixed addresses, so that TensorRT may replay a whole graph;
pictures go up as bytes and are normalized there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparseoccvla.anchors import read_anchors
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import StageInfo
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.engine_record import Precision, build_command, engine_for
from sparseoccvla.runtime.exported import Exported, GraphSpec, check_equal, export_of
from sparseoccvla.runtime.graph_backend import GraphEncoder, GraphPlanner, GraphReasoner, check_inputs
from sparseoccvla.runtime.manifest import Manifest, ModelError, read_manifest
from sparseoccvla.runtime.tensorrt_library import (
    gpu_target,
    library_version,
    make_logger,
    tensorrt_library,
)

# Largest mean error, of the mean size of an output. TF32 and half precision keep 10 bits.
TOLERANCES = {Precision.FP32: 2e-2, Precision.MIXED: 1e-1, Precision.FP16: 1e-1}


def load_encoder(source: ModelSource) -> GraphEncoder:
    """See `runtime.load.load_encoder`."""
    manifest, exported = _open(source, "encoder")
    (backbone, one), (decoder, other) = (_graph(exported, name) for name in ("backbone", "decoder"))
    info = _info(
        source,
        manifest,
        "encoder",
        f"{one}, {other}",
        image_size_px=exported.image_size_px,
        history_frames=exported.history_frames,
    )
    return GraphEncoder(backbone, decoder, exported, info)


def load_reasoner(source: ModelSource) -> GraphReasoner:
    """See `runtime.load.load_reasoner`."""
    manifest, exported = _open(source, "reasoner")
    prefill, said = _graph(exported, "reasoner")
    info = _info(source, manifest, "reasoner", said, extras={"answers": "off"})
    return GraphReasoner(prefill, exported, info)


def load_planner(source: ModelSource) -> GraphPlanner:
    """See `runtime.load.load_planner`."""
    manifest, exported = _open(source, "planner")
    anchors_m = read_anchors(manifest.file("anchors.json"))
    plan, said = _graph(exported, "planner")
    info = _info(source, manifest, "planner", said)
    return GraphPlanner(plan, exported, info, anchors_m, source.seed)


class TensorRtGraph:
    """One engine with buffers of its own.

    Args:
        path: of an engine whose record has been checked.
        spec: what goes in and out.
        library: `tensorrt` or `tensorrt_rtx`.
        device: where the buffers lie.

    Raises:
        ModelError: TensorRT refuses the engine, its inputs or outputs are others, or memory runs out.
    """

    def __init__(self, path: Path, spec: GraphSpec, library: Any, device: torch.device) -> None:
        self.spec = spec
        self._device = device
        heard: list[str] = []
        self._logger = make_logger(library, heard)  # TensorRT keeps no reference of its own
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ModelError(
                f"{library_version(library)} can't load {path}: {_last(heard)}; rebuild it: "
                f"{build_command(path.parent)}"
            )
        self._check_io(path)
        try:
            self._inputs = {t.name: _buffer(t.dtype, t.shape, device) for t in spec.inputs}
            self._outputs = {t.name: _buffer(t.dtype, t.shape, device) for t in spec.outputs}
            self._context = _context(self._engine, library)
        except torch.OutOfMemoryError as error:
            raise _no_memory(path, str(error)) from error
        if self._context is None:
            raise _no_memory(path, _last(heard))
        for name, tensor in (self._inputs | self._outputs).items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        # The default stream can't be captured.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        with self._on_stream():
            self._execute(inputs)
            return {name: tensor.cpu().numpy().copy() for name, tensor in self._outputs.items()}

    def run_held(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        with self._on_stream():
            self._execute(inputs)
            held = tuple(tensor.clone() for tensor in self._outputs.values())
        if self._stream is not None:
            self._stream.synchronize()  # another graph reads them on its own stream
        return held

    def _execute(self, inputs: Mapping[str, Any]) -> None:
        check_inputs(self.spec, inputs)
        for name, value in inputs.items():
            tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            self._inputs[name].copy_(tensor, non_blocking=True)
        handle = self._stream.cuda_stream if self._stream is not None else 0
        if not self._context.execute_async_v3(handle):
            raise RuntimeError(f"TensorRT did not run {self.spec.name}; see its log above")

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _check_io(self, path: Path) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        wanted = {t.name: t.shape for t in (*self.spec.inputs, *self.spec.outputs)}
        if found != wanted:
            raise ModelError(
                f"{path} has tensors {found}, export.json says {wanted}; rebuild it: "
                f"{build_command(path.parent)}"
            )


def _context(engine: Any, library: Any) -> Any:
    """An execution context that replays the whole engine as one CUDA graph where TensorRT can."""
    if not hasattr(library, "CudaGraphStrategy"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


def _buffer(dtype: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)


def _no_memory(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"no memory for {path} ({path.stat().st_size / 2**20:.0f} MiB and its activations): {reason}; end "
        "what else uses the GPU, or count first: sparseoccvla memory --model MODEL --profile 16gb"
    )


def _last(heard: list[str]) -> str:
    return heard[-1] if heard else "no reason given"


def _open(source: ModelSource, stage: str) -> tuple[Manifest, Exported]:
    manifest = read_manifest(source.model)
    return manifest, export_of(source, manifest, stage)


def _graph(exported: Exported, name: str) -> tuple[TensorRtGraph, str]:
    """A verified graph and what to say of it."""
    library = tensorrt_library()
    target = gpu_target()
    if not target:
        raise InputError(
            "backend tensorrt needs a CUDA GPU, and there is none here; choose backend:=onnxruntime or torch"
        )
    record, path = engine_for(exported, name, target, library_version(library))
    graph = TensorRtGraph(path, exported.graphs[name], library, torch.device("cuda"))
    check_equal("tensorrt", graph, exported, name, TOLERANCES[Precision(record.precision)])
    return graph, f"{name} {record.precision}"


def _info(source: ModelSource, manifest: Manifest, stage: str, said: str, **rest: Any) -> StageInfo:
    version = library_version(tensorrt_library())
    reason = f"asked for; {version} on {torch.cuda.get_device_name()}, {said}, held against torch at load"
    if not manifest.stages[stage].trained:
        reason += f"; no trained weights: random ones of seed {source.seed}"
    return manifest.info(stage, "tensorrt", reason, **rest)
