"""TensorRT under either of its names, and the GPU it would run on."""

from __future__ import annotations

import importlib
from typing import Any

from sparseoccvla.errors import InputError


def tensorrt_library() -> Any:
    """`tensorrt` where it is whole, else `tensorrt_rtx`: one API, two builds.

    Raises:
        InputError: neither can be imported.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            library = importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        if hasattr(library, "Builder"):
            return library
        reasons.append(f"{name}: a stub without its libraries")
    raise InputError(
        f"no TensorRT here ({'; '.join(reasons)}): JetPack and DRIVE OS bring `tensorrt`; elsewhere "
        "pip install -r requirements/engines.txt, or choose backend:=onnxruntime or torch"
    )


def library_version(library: Any) -> str:
    """Name and version, as they stand in the key of an engine."""
    return f"{library.__name__} {library.__version__}"


def gpu_target() -> str:
    """The GPU of this machine as a target, "sm89" for compute capability 8.9; "" without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def make_logger(library: Any, heard: list[str]) -> Any:
    """A logger that appends warnings and worse to `heard`."""

    class Logger(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= library.ILogger.Severity.WARNING:
                heard.append(text)

    return Logger()
