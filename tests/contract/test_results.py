"""Published figures are those of the shipped models, and the document is made of them."""

import json

import pytest

from sparseoccvla.metrics.results import read_results, stale_results
from sparseoccvla.runtime.manifest import read_manifest
from tools import results

FILES = sorted(results.PUBLISHED.glob("*/*.json"))
SHIPPED = [name for name, folder in results.MODELS.items() if name == folder]


@pytest.mark.parametrize("folder", results.published(), ids=lambda folder: folder.name)
def test_every_kind_of_figure_is_published(folder):
    assert {file.stem for file in folder.glob("*.json")} == set(results.KINDS)
    assert {file.name for file in folder.glob("*.png")} == set(results.PLOTS)


@pytest.mark.parametrize("model", SHIPPED)
def test_published_figures_are_of_the_shipped_model(model, tmp_path):
    manifest = read_manifest(model)
    files = sorted((results.PUBLISHED / model).glob("*.json"))
    # A trained model is never without figures; of an untrained one there need not be any.
    assert files or not any(stage.trained for stage in manifest.stages.values())
    assert stale_results(files, manifest.model_id) == []


def test_a_figure_of_another_model_is_noticed(tmp_path):
    # The control of the test above.
    shipped = read_results(FILES[0]).model_id
    assert stale_results(FILES[:1], shipped) == []
    other = json.loads(FILES[0].read_text()) | {"model_id": "0123456789abcdef"}
    changed = tmp_path / FILES[0].name
    changed.write_text(json.dumps(other))
    assert "run make results" in stale_results([changed], shipped)[0]


def test_the_untrained_table_is_of_random_weights():
    for kind in results.KINDS:
        found = read_results(results.PUBLISHED / "untrained" / f"{kind}.json")
        assert set(found.figures["trained"].values()) == {""}


def test_blind_rows_are_ahead_of_random_weights():
    folder = results.PUBLISHED / "untrained"
    rows = {kind: read_results(folder / f"{kind}.json").figures["rows"] for kind in results.KINDS}
    assert rows["occupancy"]["model"]["mIoU"] < rows["occupancy"]["static prior"]["mIoU"]
    for subset in ("all frames", "event frames"):
        planning = rows["planning"][subset]
        assert planning["model"]["L2_avg"] > planning["constant velocity"]["L2_avg"]
        assert planning["constant velocity"]["L2_avg"] > planning["ego-only"]["L2_avg"]
    closed = "closed"
    assert (
        rows["language"]["model"][closed]["accuracy"]
        < rows["language"]["majority answer"][closed]["accuracy"]
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_published_figure_can_be_had_again(file):
    found = read_results(file)
    assert found.command.startswith("sparseoccvla eval all --model ")
    assert "/tmp" not in found.command
    assert found.data.name == "world"
    assert found.kind == file.stem


def test_blind_rows_stand_beside_the_model():
    for folder in results.published():
        rows = {kind: read_results(folder / f"{kind}.json").figures["rows"] for kind in results.KINDS}
        assert {"model", "static prior"} <= set(rows["occupancy"])
        assert {"model", "persistence"} <= set(rows["forecast"])
        for subset in ("all frames", "event frames"):
            assert {"model", "constant velocity", "ego-only", "expert"} <= set(rows["planning"][subset])
        assert {"model", "majority answer"} <= set(rows["language"])


def test_the_document_is_made_of_the_published_figures():
    assert results.DOCUMENT.read_text() == results.document()
    assert "| ego-only |" in results.document()


def test_predictions_of_another_model_are_dropped_and_own_ones_kept(tmp_path):
    run = tmp_path / "predictions/none/run.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps({"model_id": "a" * 16}))
    results.drop_stale(tmp_path / "predictions", "a" * 16)
    assert run.exists()
    results.drop_stale(tmp_path / "predictions", "b" * 16)
    assert not run.exists()
