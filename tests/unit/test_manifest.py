import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparseoccvla.runtime.manifest import (
    Manifest,
    ModelError,
    StageEntry,
    find_model,
    read_manifest,
    write_manifest,
)

UNTRAINED = {
    "encoder": StageEntry("e1", "", "", ""),
    "reasoner": StageEntry("r1", "e1", "", ""),
    "planner": StageEntry("p1", "e1", "", ""),
}


def written(folder: Path, stages: dict[str, StageEntry] = UNTRAINED) -> Manifest:
    (folder / "config.json").write_text("{}")
    return write_manifest(folder, "toy", ["config.json"], stages, {"license": "Apache-2.0"})


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    assert manifest.stages == UNTRAINED
    assert manifest.file("config.json").read_text() == "{}"
    assert len(manifest.model_id) == 16


def test_the_model_id_changes_with_any_file(tmp_path: Path) -> None:
    first = written(tmp_path).model_id
    assert written(tmp_path).model_id == first
    (tmp_path / "config.json").write_text('{"width": 1}')
    assert (
        write_manifest(tmp_path, "toy", ["config.json"], UNTRAINED, {"license": "Apache-2.0"}).model_id
        != first
    )


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(
        ModelError, match=r"config.json has sha256 .* the file was changed or only half copied"
    ):
        manifest.file("config.json")


def test_a_missing_or_unlisted_file_is_refused(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config.json is missing"):
        manifest.file("config.json")
    with pytest.raises(ModelError, match=r"lists no other.json"):
        manifest.file("other.json")


def test_a_planner_of_another_encoder_is_refused(tmp_path: Path) -> None:
    stages = UNTRAINED | {"planner": replace(UNTRAINED["planner"], requires_stage_id="e0")}
    with pytest.raises(ModelError, match=r"planner 'p1' was trained behind encoder 'e0', but .* is 'e1'"):
        written(tmp_path, stages)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("{")
    with pytest.raises(ModelError, match="is not a manifest: JSONDecodeError"):
        read_manifest(str(tmp_path))
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(ModelError, match="has format 2, wanted 1"):
        read_manifest(str(tmp_path))
    path.write_text(json.dumps({"format": 1}))
    with pytest.raises(ModelError, match="is not a manifest: KeyError 'stages'"):
        read_manifest(str(tmp_path))


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"model 'tinny' is neither a folder with a manifest.json nor one of"
    ):
        find_model("tinny")
