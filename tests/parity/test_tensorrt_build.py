"""Every exported graph is a TensorRT graph: parsed and built here, for a GPU that is not here."""

import shutil

import pytest
import torch

from sparseoccvla.engines.build import build, check
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.engine_record import Precision, State
from sparseoccvla.runtime.exported import GRAPHS
from sparseoccvla.runtime.manifest import ModelError
from tests.tiny_export import tiny_export

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: make engines")
pytestmark = pytest.mark.slow
torch.set_num_threads(1)


def test_every_graph_of_the_tiny_model_builds_and_is_kept(tmp_path) -> None:
    exported = tiny_export()[1]
    records = build(exported.folder, tmp_path, ["sm89"], Precision.MIXED)
    assert [record.graph for record in records] == list(GRAPHS)
    assert check(tmp_path) == sorted(records, key=lambda record: record.stem)
    assert {record.state for record in records} == {State.BUILT}
    paths = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.engine")}
    assert len(paths) == len(GRAPHS)
    assert build(exported.folder, tmp_path, ["sm89"], Precision.MIXED) == records
    assert {path: path.stat().st_mtime_ns for path in paths} == paths, "nothing is built twice"
    assert not list(tmp_path.glob("*.partial"))


def test_a_target_that_does_not_exist_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"can't build for 'sm90' here, only for .*sm89"):
        build(tiny_export()[1].folder, tmp_path, ["sm90"], Precision.FP32)


def test_a_damaged_graph_is_not_built(tmp_path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_export()[1].folder, folder)
    (folder / "planner.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"planner\.onnx has sha256 .*changed or only half copied"):
        build(folder, tmp_path / "engines", ["sm89"], Precision.FP32, ["planner"])
