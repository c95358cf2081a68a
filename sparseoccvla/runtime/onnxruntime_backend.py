"""Exported graphs on any CPU through ONNX Runtime; torch is not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.anchors import read_anchors
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import StageInfo
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.exported import Exported, GraphSpec, check_equal, export_of
from sparseoccvla.runtime.graph_backend import (
    GraphEncoder,
    GraphPlanner,
    GraphReasoner,
    check_inputs,
)
from sparseoccvla.runtime.manifest import Manifest, ModelError, read_manifest

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise InputError(
        "backend onnxruntime needs the package onnxruntime, which is not installed here: "
        "pip install onnxruntime, or choose backend:=torch"
    ) from error

# Of the mean size of an output: the same fp32 arithmetic in another order.
TOLERANCE = 1e-3


def load_encoder(source: ModelSource) -> GraphEncoder:
    """See `runtime.load.load_encoder`."""
    manifest, exported = _open(source, "encoder")
    backbone, decoder = (_graph(source, exported, name) for name in ("backbone", "decoder"))
    info = _info(
        source,
        manifest,
        "encoder",
        image_size_px=exported.image_size_px,
        history_frames=exported.history_frames,
    )
    return GraphEncoder(backbone, decoder, exported, info)


def load_reasoner(source: ModelSource) -> GraphReasoner:
    """See `runtime.load.load_reasoner`."""
    manifest, exported = _open(source, "reasoner")
    info = _info(source, manifest, "reasoner", extras={"answers": "off"})
    return GraphReasoner(_graph(source, exported, "reasoner"), exported, info)


def load_planner(source: ModelSource) -> GraphPlanner:
    """See `runtime.load.load_planner`."""
    manifest, exported = _open(source, "planner")
    anchors_m = read_anchors(manifest.file("anchors.json"))
    info = _info(source, manifest, "planner")
    return GraphPlanner(_graph(source, exported, "planner"), exported, info, anchors_m, source.seed)


class OrtGraph:
    """One session with its outputs bound once; inputs are read where they lie.

    Raises:
        ModelError: ONNX Runtime can't load the file, or it has other inputs or outputs than `spec`.
    """

    def __init__(self, path: Path, spec: GraphSpec, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between runs take the cores from the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime can't load {path}: {error}; export again") from error
        self.spec = spec
        self._check_io(path)
        self._outputs = {
            out.name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(out.shape, np.dtype(out.dtype), "cpu")
            for out in spec.outputs
        }
        self._binding = self._session.io_binding()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        self._bind(inputs)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._session.run_with_iobinding(self._binding)
        # numpy() is a view: without a copy the next run would write into what the caller got.
        return {name: value.numpy().copy() for name, value in self._outputs.items()}

    def run_held(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        self._bind(inputs)
        for output in self.spec.outputs:
            self._binding.bind_output(output.name, "cpu")
        self._session.run_with_iobinding(self._binding)
        return tuple(self._binding.get_outputs())

    def _bind(self, inputs: Mapping[str, Any]) -> None:
        check_inputs(self.spec, inputs)
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                self._binding.bind_ortvalue_input(name, value)

    def _check_io(self, path: Path) -> None:
        for what, found, wanted in (
            ("inputs", self._session.get_inputs(), self.spec.inputs),
            ("outputs", self._session.get_outputs(), self.spec.outputs),
        ):
            got = {node.name: tuple(node.shape) for node in found}
            asked = {tensor.name: tensor.shape for tensor in wanted}
            if got != asked:
                raise ModelError(f"{path} has {what} {got}, export.json says {asked}; export again")


def _open(source: ModelSource, stage: str) -> tuple[Manifest, Exported]:
    manifest = read_manifest(source.model)
    return manifest, export_of(source, manifest, stage)


def _graph(source: ModelSource, exported: Exported, name: str) -> OrtGraph:
    threads = source.threads or max(1, (os.cpu_count() or 1) // 3)  # as torch_backend has it
    graph = OrtGraph(exported.file(name), exported.graphs[name], threads)
    check_equal("onnxruntime", graph, exported, name, TOLERANCE)
    return graph


def _info(source: ModelSource, manifest: Manifest, stage: str, **rest: Any) -> StageInfo:
    reason = f"asked for; onnxruntime {onnxruntime.__version__} on CPU, equal to torch on fixed inputs"
    if not manifest.stages[stage].trained:
        reason += f"; no trained weights: random ones of seed {source.seed}"
    return manifest.info(stage, "onnxruntime", reason, **rest)
