"""Predictions made by several processes."""

from dataclasses import replace

import pytest

from sparseoccvla.config import ModelSource
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.predictions import Part, PredictionStore, Shuffle
from sparseoccvla.evaluation.runner import Models, RunConfig
from sparseoccvla.evaluation.workers import Job, predict_in_processes
from tests.evaluation_stand_ins import KEYFRAMES, make_labeled_root, open_val

PARTS = (Part.OCCUPANCY, Part.PLANNING)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    root = make_labeled_root(tmp_path_factory.mktemp("data") / "root")
    cache = open_val(root, tmp_path_factory.mktemp("cache") / "val")
    return Job(ModelSource(backend="fake", threads=2), cache.folder, PARTS, RunConfig(), Shuffle.NONE)


def test_processes_predict_what_one_does(job, tmp_path):
    runner = job.runner(Models.load(job.source, job.parts))
    alone, shared = (PredictionStore(tmp_path / name, runner.describe()) for name in ("alone", "shared"))
    runner.run(alone)
    told = []
    predict_in_processes(job, runner, shared, 2, told.append)
    assert sum(told) == KEYFRAMES
    for scene in runner.scenes:
        first, second = alone.read(scene), shared.read(scene)
        assert [prediction.token for prediction in first] == [prediction.token for prediction in second]
        for one, other in zip(first, second, strict=True):
            assert (one.plan.candidates == other.plan.candidates).all()
            assert (one.occupancy.index == other.occupancy.index).all()
    told.clear()
    predict_in_processes(job, runner, shared, 2, told.append)  # nothing is left to do
    assert sum(told) == KEYFRAMES


def test_what_goes_wrong_in_a_process_is_told(job, tmp_path):
    runner = job.runner(Models.load(job.source, job.parts))
    store = PredictionStore(tmp_path / "p", runner.describe())
    lost = replace(job, source=replace(job.source, backend="torch", model="nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        predict_in_processes(lost, runner, store, 2, lambda _: None)


def test_a_share_leaves_the_scenes_of_others_alone(job, tmp_path):
    runner = job.runner(Models.load(job.source, job.parts))
    store = PredictionStore(tmp_path / "p", runner.describe())
    runner.run(store, only=[])
    assert not any(store.has(scene) for scene in runner.scenes)
    runner.run(store, only=list(runner.scenes))
    assert all(store.has(scene) for scene in runner.scenes)
