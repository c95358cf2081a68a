"""Figures of an evaluation: what is right scores as right, what is wrong shows, nothing goes uncounted."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import FREE_CLASS
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation import evaluate as evaluating
from sparseoccvla.evaluation.baselines import BaselineConfig, fit_prior
from sparseoccvla.evaluation.evaluate import Evaluation, evaluate
from sparseoccvla.evaluation.predictions import (
    Part,
    Shuffle,
)
from sparseoccvla.evaluation.runner import RunConfig
from sparseoccvla.metrics.occupancy import OccupancyMetric
from sparseoccvla.metrics.results import read_results
from tests.evaluation_stand_ins import EVENTS, KEYFRAMES, make_labeled_root, open_val, perfect_models

pytestmark = pytest.mark.slow
QUICK = BaselineConfig(steps=200, batch=16)
CONTROLS = (Shuffle.PICTURES, Shuffle.COMMAND, Shuffle.REASONING)
SCORED = KEYFRAMES - 6  # have three seconds of future


@contextmanager
def silent(_what, _total):
    yield lambda _done: None


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_labeled_root(tmp_path_factory.mktemp("data") / "root")


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    return open_val(root, tmp_path_factory.mktemp("cache") / "val")


def run(root, cache, out, parts=tuple(Part), shuffles=(), models=None, **settings):
    """Evaluate stand-ins; the results by kind."""
    evaluation = Evaluation(
        parts=parts,
        source=ModelSource(backend="fake"),
        tables=Tables(root),
        out=out,
        command="sparseoccvla eval",
        shuffles=shuffles,
        baselines=QUICK,
        **{"run": RunConfig(asked=0), "rays_every": 6} | settings,
    )
    with pytest.MonkeyPatch.context() as patch:
        chosen = models or perfect_models(cache)
        patch.setattr(evaluating, "Models", type("M", (), {"load": staticmethod(lambda *_: chosen)}))
        return {file.stem: read_results(file) for file in evaluate(evaluation, silent)}


@pytest.fixture(scope="module")
def out(root, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "o"
    return out, run(root, cache, out, shuffles=CONTROLS)


def test_a_perfect_model_has_perfect_figures(out):
    _, results = out
    occupancy = results["occupancy"].figures["rows"]["model"]
    assert occupancy["mIoU"] == occupancy["IoU"] == occupancy["RayIoU"] == 1
    assert occupancy["mIoU_objects"] == 1
    assert results["occupancy"].n == KEYFRAMES
    planning = results["planning"].figures["rows"]
    assert planning["all frames"]["model"]["L2_avg"] < 1e-3
    assert planning["all frames"]["model"]["n"] == SCORED
    assert planning["event frames"]["model"]["n"] == len(EVENTS)
    for protocol, figures in planning["all frames"]["model"]["protocols"].items():
        assert figures["L2_avg"] < 1e-3, protocol
        assert figures["obj_box_col_avg"] == 0, protocol
    assert results["planning"].figures["anchors"]["all frames"]["model"]["accuracy"] == 1
    language = results["language"].figures["rows"]["model"]
    assert language["closed"]["accuracy"] == language["closed, held-out wording"]["accuracy"] == 1
    assert language["desc"]["ROUGE_L"] == 1


def test_forecasts_lose_only_what_the_grid_does(out):
    # Right points become voxels at t0 and are read in another frame: less than 1, far above staying.
    rows = out[1]["forecast"].figures["rows"]
    assert 0.5 < rows["model"]["mIoU_avg"] < 1
    assert rows["model"]["mIoU_avg"] > rows["persistence"]["mIoU_avg"] + 0.2
    assert rows["model"]["3s"]["mIoU_movable"] > 2 * rows["persistence"]["3s"]["mIoU_movable"]


def test_controls_change_what_they_touch(out):
    _, results = out
    occupancy = results["occupancy"].figures["rows"]
    assert occupancy["pictures shuffled"]["mIoU"] < 0.8
    assert "command shuffled" not in occupancy
    planning = results["planning"].figures["rows"]["all frames"]
    for control in CONTROLS:
        assert planning[f"{control} shuffled"]["L2_avg"] > 1, control
    language = results["language"].figures["rows"]
    assert language["pictures shuffled"]["desc"]["ROUGE_L"] < 1


def test_the_null_token_row_is_the_plan_without_reasoning(out):
    anchors = out[1]["planning"].figures["anchors"]["event frames"]
    assert anchors["model"]["accuracy"] == 1
    assert anchors["null token"]["accuracy"] == 0


def test_every_table_has_its_blind_rows(out):
    folder, results = out
    rows = {kind: result.figures["rows"] for kind, result in results.items()}
    assert "static prior" in rows["occupancy"]
    assert {"persistence", "static prior"} <= set(rows["forecast"])
    for subset in ("all frames", "event frames"):
        assert {"constant velocity", "ego-only", "expert", "never move"} <= set(rows["planning"][subset])
    assert {"majority answer", "same LLM, occupancy tokens zeroed"} <= set(rows["language"])
    report = (folder / "report.md").read_text()
    for name in ("static prior", "ego-only", "majority answer", "persistence"):
        assert f"| {name} |" in report or f": {name} |" in report
    for picture in ("confusion.png", "horizon.png", "reliability.png", "worst.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_the_expert_is_without_error(out):
    expert = out[1]["planning"].figures["rows"]["all frames"]["expert"]
    assert expert["L2_avg"] < 1e-5
    # The stand-in's plans are as good, a plan that stands still is not.
    assert out[1]["planning"].figures["rows"]["all frames"]["never move"]["L2_avg"] > 5


def test_the_prior_and_its_score_equal_a_recount(cache, out):
    votes = np.zeros((200, 200, 16, 18), int)
    for index in range(KEYFRAMES):
        label = cache.occupancy(index)
        for value in range(18):
            votes[..., value] += (label.semantics == value) & label.camera_mask
    prior = np.where(votes.sum(axis=-1) > 0, votes.argmax(axis=-1), FREE_CLASS)
    assert np.array_equal(fit_prior(cache, 100), prior)
    metric = OccupancyMetric()
    for index in range(KEYFRAMES):
        label = cache.occupancy(index)
        metric.update(prior.astype(np.uint8), label.semantics, label.camera_mask)
    assert out[1]["occupancy"].figures["rows"]["static prior"]["mIoU"] == metric.result()["mIoU"]


def test_persistence_equals_a_recount_voxel_by_voxel(cache, out):
    hit = union = 0
    x, y, z = np.indices((200, 200, 16)).reshape(3, -1)
    centers = np.stack([x, y, z, np.ones(len(x))]) * 0.4 + np.array([[-39.8], [-39.8], [-0.8], [0]])
    centers[3] = 1
    for index in range(SCORED):
        later = index + 2
        odom_from_label = [cache.odom_from_base(i) @ cache.truth(i).base_from_label for i in (index, later)]
        moved = np.linalg.inv(odom_from_label[0]) @ odom_from_label[1] @ centers
        place = np.floor((moved[:3] + np.array([[40], [40], [1]])) / 0.4).astype(int)
        inside = ((place >= 0) & (place < [[200], [200], [16]])).all(axis=0)
        present = np.full(len(x), FREE_CLASS)
        present[inside] = cache.occupancy(index).semantics[tuple(place[:, inside])]
        truth = cache.occupancy(later).semantics.ravel()
        hit += int(((present != FREE_CLASS) & (truth != FREE_CLASS)).sum())
        union += int(((present != FREE_CLASS) | (truth != FREE_CLASS)).sum())
    row = out[1]["forecast"].figures["rows"]["persistence of the true present"]
    assert row["1s"]["IoU"] == pytest.approx(hit / union, abs=1e-9)
    # What the model sees is true here, so both rows must say the same.
    assert out[1]["forecast"].figures["rows"]["persistence"]["1s"]["IoU"] == pytest.approx(hit / union)


def test_what_cannot_be_scored_is_counted(out):
    planning = out[1]["planning"]
    assert planning.n + planning.skipped == KEYFRAMES
    assert len(planning.figures["skipped_items"]) == planning.skipped
    # The root of the test has no edited pictures, and the figures say how to make some.
    assert "sparseoccvla world edit" in planning.figures["cause_and_effect"]["skipped"]
    assert any("no valid future" in reason for reason in planning.figures["skipped_reasons"])
    forecast = out[1]["forecast"]
    assert forecast.figures["skipped_reasons"] == {"no keyframe 3 s later in the scene": 6}


def test_predictions_that_are_not_finite_are_counted_not_scored(root, cache, tmp_path):
    models = perfect_models(cache)
    wrong = models.planner.plan

    def plan(queries, *rest):
        made = wrong(queries, *rest)
        return replace(made, candidates=made.candidates * np.nan) if queries.features[0, 0] == 1 else made

    models.planner.plan = plan
    results = run(root, cache, tmp_path / "o", (Part.PLANNING,), models=models)
    assert results["planning"].n == SCORED - 1
    assert any("not finite" in reason for reason in results["planning"].figures["skipped_reasons"])
    models.planner.plan = lambda *inputs: replace(wrong(*inputs), scores=np.full(18, np.nan, np.float32))
    with pytest.raises(InputError, match=r"no keyframe gives a planning figure \(12 x .*not finite"):
        run(root, cache, tmp_path / "none", (Part.PLANNING,), models=models)


def test_an_empty_answer_is_wrong_and_counted(root, cache, tmp_path):
    models = perfect_models(cache)
    models.reasoner.answer = lambda *_: iter(["  "])
    language = run(root, cache, tmp_path / "o", (Part.LANGUAGE,), models=models)["language"]
    assert language.skipped == 0
    assert language.figures["rows"]["model"]["closed"]["accuracy"] == 0
    assert language.figures["rows"]["model"]["desc"]["ROUGE_L"] == 0
    assert language.figures["rows"]["model"]["desc"]["n"] == KEYFRAMES


def test_a_control_that_changes_nothing_is_refused(root, cache, tmp_path):
    with pytest.raises(InputError, match="--shuffle command changes nothing of occupancy"):
        run(root, cache, tmp_path / "o", (Part.OCCUPANCY,), (Shuffle.COMMAND,))


def test_a_foreign_folder_is_left_alone(root, cache, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis.tex, which this command did not make"):
        run(root, cache, tmp_path, (Part.OCCUPANCY,))
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_bad_input_ends_with_exit_code_2(tmp_path):
    command = (
        f"eval planning --model tiny --backend fake --dataroot {tmp_path / 'none'} --out {tmp_path / 'o'}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sparseoccvla", *command.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no data set at" in done.stderr


def test_results_name_model_data_and_command(out):
    for kind, result in out[1].items():
        assert result.kind == kind
        assert result.model_id == "0" * 16
        assert result.data.split == "val"
        assert result.command == "sparseoccvla eval"
        json.dumps(result.figures, allow_nan=False)
