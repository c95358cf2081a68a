"""Choose a backend, once, by name. Its library is imported only when it is asked for."""

from __future__ import annotations

from sparseoccvla.config import ModelSource
from sparseoccvla.runtime.base import Encoder, Planner, Reasoner


def load_encoder(source: ModelSource) -> Encoder:
    """The encoder of a model.

    Raises:
        ModelError: no such model, a file with a wrong hash, or stages that don't belong together; no export
            or engine of this model, or one that does not say what torch says.
        InputError: the backend's library is not installed.
    """
    match source.backend:
        case "fake":
            from sparseoccvla.runtime import fake_backend

            return fake_backend.FakeEncoder()
        case "torch":
            from sparseoccvla.runtime import torch_backend

            return torch_backend.load_encoder(source)
        case "onnxruntime":
            from sparseoccvla.runtime import onnxruntime_backend

            return onnxruntime_backend.load_encoder(source)
        case "tensorrt":
            from sparseoccvla.runtime import tensorrt_backend

            return tensorrt_backend.load_encoder(source)
    raise _unknown(source)


def load_reasoner(source: ModelSource) -> Reasoner:
    """The reasoner of a model; raises as `load_encoder`."""
    match source.backend:
        case "fake":
            from sparseoccvla.runtime import fake_backend

            return fake_backend.FakeReasoner()
        case "torch":
            from sparseoccvla.runtime import torch_backend

            return torch_backend.load_reasoner(source)
        case "onnxruntime":
            from sparseoccvla.runtime import onnxruntime_backend

            return onnxruntime_backend.load_reasoner(source)
        case "tensorrt":
            from sparseoccvla.runtime import tensorrt_backend

            return tensorrt_backend.load_reasoner(source)
    raise _unknown(source)


def load_planner(source: ModelSource) -> Planner:
    """The planner of a model; raises as `load_encoder`."""
    match source.backend:
        case "fake":
            from sparseoccvla.runtime import fake_backend

            return fake_backend.FakePlanner()
        case "torch":
            from sparseoccvla.runtime import torch_backend

            return torch_backend.load_planner(source)
        case "onnxruntime":
            from sparseoccvla.runtime import onnxruntime_backend

            return onnxruntime_backend.load_planner(source)
        case "tensorrt":
            from sparseoccvla.runtime import tensorrt_backend

            return tensorrt_backend.load_planner(source)
    raise _unknown(source)


def _unknown(source: ModelSource) -> AssertionError:
    # `ModelSource` only lets known names through: getting here is a mistake in this file.
    return AssertionError(f"backend {source.backend!r} has no branch in runtime/load.py")
