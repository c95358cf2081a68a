"""Evaluation in parts: predictions on disk, the runner's history, protocols, the ego-only row."""

from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.config import ModelSource
from sparseoccvla.data.agents import Agents
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.anchors import AnchorMetric
from sparseoccvla.evaluation.baselines import BaselineConfig, train_ego_only
from sparseoccvla.evaluation.planning import samples_of
from sparseoccvla.evaluation.predictions import (
    Part,
    Plan,
    Prediction,
    PredictionsError,
    PredictionStore,
)
from sparseoccvla.evaluation.runner import Models, RunConfig, Runner
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.agents import LIDAR_FORWARD_M, AgentKind, from_base_link
from sparseoccvla.metrics.planning import PlanningProtocol, hits
from tests.evaluation_stand_ins import KEYFRAMES, make_labeled_root, open_val, perfect_models

QUICK = BaselineConfig(steps=200, batch=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_labeled_root(tmp_path_factory.mktemp("data") / "root")


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    return open_val(root, tmp_path_factory.mktemp("cache") / "val")


def test_a_stopped_run_goes_on_and_another_is_refused(cache, tmp_path):
    models = perfect_models(cache)
    runner = Runner(models, cache, (Part.OCCUPANCY,), RunConfig())
    store = PredictionStore(tmp_path / "p", runner.describe())
    runner.run(store)
    assert models.encoder.extracted == KEYFRAMES
    runner.run(PredictionStore(tmp_path / "p", runner.describe()))
    assert models.encoder.extracted == KEYFRAMES
    (tmp_path / "p/scene-0001.npz").unlink()
    runner.run(PredictionStore(tmp_path / "p", runner.describe()))
    assert models.encoder.extracted == 2 * KEYFRAMES
    with pytest.raises(PredictionsError, match=r"limit 0 instead of 3\); choose another --out"):
        PredictionStore(tmp_path / "p", runner.describe() | {"limit": 3})
    (tmp_path / "p/scene-0001.npz").write_bytes(b"no zip")
    with pytest.raises(PredictionsError, match="damaged"):
        store.read("scene-0001")


def test_history_is_that_of_the_live_ring(cache):
    asked = []
    models = perfect_models(cache)
    decode = models.encoder.decode
    models.encoder.decode = lambda frames: asked.append(frames) or decode(frames)
    Runner(models, cache, (Part.OCCUPANCY,), RunConfig()).predict(range(KEYFRAMES), set())
    assert [frame and frame.maps for frame in asked[0]] == [0, None]
    assert [[frame.maps for frame in frames] for frames in asked[1:]] == [
        [k, k - 1] for k in range(1, KEYFRAMES)
    ]


def test_a_duplicate_token_is_counted(cache):
    runner = Runner(perfect_models(cache), cache, (Part.OCCUPANCY,), RunConfig(limit=2))
    first, second = runner.predict([0, 1], {"sample1"})
    assert first.failure == ""
    assert "duplicate" in second.failure


def test_stored_predictions_come_back_as_they_were(tmp_path):
    plan = Plan(np.arange(324, dtype=np.float32).reshape(18, 6, 3), np.linspace(0, 1, 18, dtype="f4"), 7)
    store = PredictionStore(tmp_path / "p", {"model_id": "x"})
    store.write("s", [Prediction("a", plan=plan), Prediction("b", failure="none")])
    first, second = store.read("s")
    assert first.plan is not None
    assert np.array_equal(first.plan.candidates, plan.candidates)
    assert first.plan.chosen == 7
    assert (first.occupancy, second.plan, second.failure) == (None, None, "none")


def test_protocols_get_obstacles_in_their_own_frame(cache):
    # A car stands 20 m ahead of the rear axle, so its tail is at 18 m; the ego's front is 3.53 m ahead of
    # its own rear axle. Rasters are 0.5 m wide.
    poses = np.zeros((1, 7, 3), np.float32)
    poses[..., 0] = 20
    size = np.array([[4.0, 2.0, 1.5]], np.float32)
    agents = Agents(poses, np.ones((1, 7), bool), size, np.array([AgentKind.VEHICLE], np.uint8))
    samples = samples_of(replace(cache.truth(0), agents=agents))
    for protocol, sample in samples.items():
        origin_m = 0.0 if protocol is PlanningProtocol.OMNIDRIVE else LIDAR_FORWARD_M
        for ahead_m, aside_m, hit in ((15.1, 0.0, True), (13.8, 0.0, False), (15.1, 2.7, False)):
            plan = np.zeros((6, 3))
            plan[:, 0] = np.linspace(ahead_m / 6, ahead_m, 6)
            plan[:, 1] = aside_m
            predicted = from_base_link(plan, origin_m)[:, :2]
            assert hits(predicted, sample, protocol)[-1] == hit, (protocol, ahead_m, aside_m)


def test_ego_only_takes_the_best_rate_of_the_sweep(cache):
    planner, report = train_ego_only(cache, replace(QUICK, learning_rates=(1e-7, 1e-3)))
    tried = {row["learning_rate"]: row["held_out_L1"] for row in report["tried"]}
    assert report["chosen_learning_rate"] == 1e-3
    assert tried[1e-3] < tried[1e-7]
    again, _ = train_ego_only(cache, replace(QUICK, learning_rates=(1e-7, 1e-3)))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(planner.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_reliability_counts_each_score_once():
    metric = AnchorMetric()
    metric.update(np.array([0.05, 0.95, 0.55]), 1, np.array([2.0, 0.5, 1.0]))
    metric.update(np.array([0.05, 0.95, 0.55]), 1, np.array([0.4, 0.5, 1.0]))
    result = metric.result()
    assert result["accuracy"] == 0.5
    assert result["regret_m"] == pytest.approx(0.05)
    assert result["reliability"]["n"][9] == 2
    assert result["reliability"]["frequency"][9] == 0.5
    assert result["reliability"]["frequency"][5] == 0


def test_unscorable_is_an_input_error():
    assert issubclass(UnscorableError, InputError)


def test_only_the_stages_that_are_asked_are_loaded():
    source = ModelSource(backend="fake")
    assert Models.load(source, (Part.OCCUPANCY,)).reasoner is None
    assert Models.load(source, (Part.FORECAST,)).planner is None
    assert Models.load(source, (Part.PLANNING,)).planner is not None
