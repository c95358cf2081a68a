"""An engine is only loaded when it is whole, belongs to its graph, its TensorRT and its GPU, and agrees."""

import ctypes
import json
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from sparseoccvla.cli import app
from sparseoccvla.contracts import ContractError
from sparseoccvla.engines import build as engines
from sparseoccvla.errors import InputError
from sparseoccvla.runtime import tensorrt_library
from sparseoccvla.runtime.engine_record import (
    EngineRecord,
    Precision,
    State,
    Verified,
    check_engine,
    engine_for,
    engine_key,
    read_records,
)
from sparseoccvla.runtime.exported import Exported, check_equal, read_export, relative_errors, sample_of
from sparseoccvla.runtime.manifest import ModelError, sha256_of
from sparseoccvla.runtime.tensorrt_backend import TensorRtGraph

LIBRARY = "tensorrt_rtx 1.7.1.116"
CPU = torch.device("cpu")
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    """An export of one graph, `planner`: noise (2, 4) @ WEIGHT -> scores (2, 3)."""
    folder = tmp_path / "export"
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["noise", "weight"], ["scores"])],
        "planner",
        [helper.make_tensor_value_info("noise", TensorProto.FLOAT, (2, 4))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (2, 3))],
        [onnx.numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "planner.onnx")
    content = {
        "format": 2, "model_id": "m", "seed": 0, "opset": 18, "image_size_px": [128, 352],
        "history_frames": 2, "repeat_history": False, "voxel_rule": {}, "prompt": "",
        "graphs": {"planner": {
            "files": {"planner.onnx": sha256_of(folder / "planner.onnx")},
            "inputs": [{"name": "noise", "dtype": "float32", "shape": [2, 4]}],
            "outputs": [{"name": "scores", "dtype": "float32", "shape": [2, 3]}],
        }},
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(content))
    read = read_export(folder)
    expected = {"scores": read.fixed_inputs("planner")["noise"] @ WEIGHT}
    np.savez(folder / "planner.npz", **sample_of(expected))
    return read


def put_engine(exported: Exported, content: bytes = b"engine", **changes: object) -> EngineRecord:
    """An engine file with its record, as a build leaves them, beside the export."""
    record = EngineRecord(
        "planner", "sm89", Precision.FP32, "static", exported.onnx_sha256("planner"), LIBRARY, "", 0, "", 1.0
    )  # fmt: skip
    record = replace(record, **changes)
    path = exported.folder / f"{record.stem}.engine"
    path.write_bytes(content)
    record = replace(record, engine_sha256=sha256_of(path), engine_bytes=len(content))
    record.write(exported.folder)
    return record


def test_the_key_changes_with_everything_that_makes_an_engine() -> None:
    base = ("onnx", LIBRARY, "sm89", "fp32", "static")
    keys = {engine_key(*base)}
    for place in range(len(base)):
        keys.add(engine_key(*(value + "x" * (i == place) for i, value in enumerate(base))))
    assert len(keys) == 1 + len(base)
    assert engine_key(*base) == engine_key(*base)


def test_a_whole_engine_is_found(exported) -> None:
    record = put_engine(exported)
    found, path = engine_for(exported, "planner", "sm89", LIBRARY)
    assert found == record
    assert path.read_bytes() == b"engine"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", r"has 3 bytes, its record says 6: only half copied; .* --targets sm89 --precision fp32"),
        ("changed", r"has sha256 \w+, its record says \w+: changed; rebuild it: sparseoccvla engine build"),
        ("missing", r"is missing, its record is there; rebuild it: sparseoccvla engine build"),
    ],
)
def test_a_damaged_engine_is_refused_with_the_command_that_mends_it(exported, fault, said) -> None:
    record = put_engine(exported)
    path = check_engine(record, exported, LIBRARY)
    match fault:
        case "cut":
            path.write_bytes(b"eng")
        case "changed":
            path.write_bytes(b"enginE")
        case "missing":
            path.unlink()
    with pytest.raises(ModelError, match=said):
        check_engine(record, exported, LIBRARY)


def test_an_engine_of_another_graph_library_or_gpu_is_refused(exported) -> None:
    foreign = put_engine(exported, onnx_sha256="f" * 64)
    with pytest.raises(ModelError, match="built from ONNX ffffffffffffffff, the export beside it is"):
        check_engine(foreign, exported, LIBRARY)
    record = put_engine(exported)
    with pytest.raises(ModelError, match=r"built by tensorrt_rtx 1\.7\.1\.116, here is tensorrt 10\.9"):
        check_engine(record, exported, "tensorrt 10.9")
    with pytest.raises(ModelError, match=r"for this GPU, sm120; found for: sm89\. Build it: .*sm120"):
        engine_for(exported, "planner", "sm120", LIBRARY)


def test_two_engines_for_one_gpu_are_refused(exported) -> None:
    put_engine(exported)
    put_engine(exported, precision=Precision.FP16)
    with pytest.raises(ModelError, match=r"several engines of planner for sm89: .*keep one"):
        engine_for(exported, "planner", "sm89", LIBRARY)


def test_a_record_that_is_none_is_refused(exported) -> None:
    record = put_engine(exported)
    (exported.folder / f"{record.stem}.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is no record of an engine: KeyError 'format'; remove it"):
        read_records(exported.folder)


def test_verification_is_kept_in_the_record(exported) -> None:
    record = put_engine(exported)
    assert record.state == State.BUILT
    record.as_verified(Verified("GPU", {"scores": 1e-4}, 1.0, 1.5)).write(exported.folder)
    [read] = read_records(exported.folder)
    assert read.state == State.VERIFIED
    assert read.verified == Verified("GPU", {"scores": 1e-4}, 1.0, 1.5)


def test_check_ends_with_a_code_for_scripts(exported, monkeypatch) -> None:
    monkeypatch.setattr(engines, "tensorrt_library", lambda: SimpleNamespace(
        __name__="tensorrt_rtx", __version__="1.7.1.116"))  # fmt: skip
    record = put_engine(exported)

    def check() -> int | None:
        result = CliRunner().invoke(app, ["engine", "check", str(exported.folder)])
        return 2 if isinstance(result.exception, InputError) else result.exit_code

    assert check() == 3
    record.as_verified(Verified("GPU", {}, 1.0, 1.0)).write(exported.folder)
    assert check() == 0
    (exported.folder / f"{record.stem}.engine").write_bytes(b"x")
    assert check() == 2


def test_no_tensorrt_is_an_error_that_says_what_to_install(monkeypatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"pip install -r requirements/engines\.txt"):
        tensorrt_library.tensorrt_library()
    # The package index has a stub of this name without any library.
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda name: SimpleNamespace())
    with pytest.raises(InputError, match="a stub without its libraries"):
        tensorrt_library.tensorrt_library()


class FakeTensorRt:
    """TensorRT up to the device call: an engine that multiplies host memory, with faults on request."""

    __name__, __version__ = "tensorrt", "0"

    class ILogger:
        class Severity(IntEnum):
            ERROR = 1
            WARNING = 2

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.addresses: dict[str, int] = {}
        self.num_io_tensors = 2

    def Runtime(self, logger):  # noqa: N802 (TensorRT's name)
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, content: bytes):
        if self.fault == "version":
            self.logger.log(self.ILogger.Severity.ERROR, "serialized with another version")
            return None
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("noise", "scores")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"noise": (2, 4), "scores": (2, 5) if self.fault == "shape" else (2, 3)}[name]

    def create_execution_context(self):
        if self.fault == "memory":
            self.logger.log(self.ILogger.Severity.ERROR, "out of memory")
            return None
        return self

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        noise, scores = (
            np.ctypeslib.as_array((ctypes.c_float * n).from_address(self.addresses[name]))
            for name, n in (("noise", 8), ("scores", 6))
        )
        weight = WEIGHT * 1.5 if self.fault == "numbers" else WEIGHT
        if self.fault != "deaf":
            scores[:] = (noise.reshape(2, 4) @ weight).ravel()
        return self.fault != "device"


def load(exported: Exported, fault: str = "") -> TensorRtGraph:
    record = put_engine(exported)
    path = exported.folder / f"{record.stem}.engine"
    return TensorRtGraph(path, exported.graphs["planner"], FakeTensorRt(fault), CPU)


def test_a_graph_copies_in_runs_and_copies_out(exported) -> None:
    graph = load(exported)
    assert check_equal("here", graph, exported, "planner", 1e-6)["scores"] < 1e-6
    noise = np.ones((2, 4), np.float32)
    first = graph.run({"noise": noise})["scores"]
    [held] = graph.run_held({"noise": torch.from_numpy(2 * noise)})  # what another graph left
    graph.run({"noise": 0 * noise})
    np.testing.assert_allclose(first, noise @ WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(held.numpy(), 2 * noise @ WEIGHT, rtol=1e-6)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("version", "tensorrt 0 can't load .*: serialized with another version; rebuild it"),
        ("shape", r"has tensors .*\(2, 5\).*export.json says .*\(2, 3\).*; rebuild it"),
        ("memory", "no memory for .*: out of memory; end what else uses the GPU"),
    ],
)
def test_an_engine_that_does_not_load_is_refused_with_the_reason(exported, fault, said) -> None:
    with pytest.raises(ModelError, match=said):
        load(exported, fault)


def test_an_engine_that_says_something_else_is_refused(exported) -> None:
    with pytest.raises(ModelError, match=r"planner differs from torch on the fixed inputs, scores by 0\.5"):
        check_equal("here", load(exported, "numbers"), exported, "planner", 1e-2)
    with pytest.raises(ModelError, match="scores by 1 of its size"):
        check_equal("here", load(exported, "deaf"), exported, "planner", 1e-2)
    with pytest.raises(ModelError, match="says the same of two different inputs"):
        check_equal("here", load(exported, "deaf"), exported, "planner", 2.0)


def test_the_last_bits_of_scores_near_zero_are_no_difference() -> None:
    wanted = {"scores": np.full(18, 1e-7, np.float32)}
    assert relative_errors({"scores": 1.1 * wanted["scores"]}, wanted)["scores"] < 1e-5
    assert relative_errors({"scores": wanted["scores"] + 1e-3}, wanted)["scores"] > 0.05


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut"])
def test_without_torch_s_results_nothing_is_believed(exported, content) -> None:
    graph = load(exported)
    path = exported.folder / "planner.npz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"planner\.npz can't be read: .*Export again: sparseoccvla export"):
        check_equal("here", graph, exported, "planner", 1e-2)


def test_wrong_inputs_are_refused_before_the_device_sees_them(exported) -> None:
    graph = load(exported)
    with pytest.raises(ContractError, match=r"noise of float64 \(2, 4\), wanted float32 \(2, 4\)"):
        graph.run({"noise": np.ones((2, 4))})
    with pytest.raises(ContractError, match=r"noise of float32 \(4, 2\), wanted float32 \(2, 4\)"):
        graph.run({"noise": np.ones((4, 2), np.float32)})
    with pytest.raises(ContractError, match=r"got inputs \['sound'\], wanted \['noise'\]"):
        graph.run({"sound": np.ones((2, 4), np.float32)})


def test_a_run_that_the_device_refuses_is_no_result(exported) -> None:
    with pytest.raises(RuntimeError, match="TensorRT did not run planner"):
        load(exported, "device").run({"noise": np.ones((2, 4), np.float32)})
