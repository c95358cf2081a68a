from dataclasses import replace

import numpy as np
import pytest
import torch

from sparseoccvla.contracts import FREE_CLASS, Command, EgoState
from sparseoccvla.metrics.baselines import MajorityAnswers, StaticPrior, constant_velocity, persistence
from sparseoccvla.metrics.ego_only import NUM_FEATURES, EgoOnlyPlanner, ego_features

CAR, ROAD = 4, 11


def test_constant_velocity_keeps_speed_and_heading() -> None:
    plan = constant_velocity(EgoState.fake(speed_mps=8.0))
    assert plan[:, 0].tolist() == [4, 8, 12, 16, 20, 24]
    assert not plan[:, 1:].any()


def test_the_static_prior_is_the_most_frequent_label_of_each_voxel() -> None:
    prior = StaticPrior()
    grid = np.full((200, 200, 16), FREE_CLASS, np.uint8)
    grid[0, 0, 0], grid[1, 0, 0] = ROAD, CAR
    other = grid.copy()
    other[1, 0, 0], other[2, 0, 0] = FREE_CLASS, 255
    for frame in (grid, grid, other):
        prior.update(frame)
    labels = prior.labels()
    assert (labels[0, 0, 0], labels[1, 0, 0], labels[2, 0, 0]) == (ROAD, CAR, FREE_CLASS)
    hidden = StaticPrior()
    hidden.update(grid, np.zeros(grid.shape, bool))
    assert (hidden.labels() == FREE_CLASS).all()


def test_persistence_repeats_the_present() -> None:
    present = np.zeros((2, 2, 2), np.uint8)
    assert [f is present for f in persistence(present)] == [True, True, True]


def test_majority_answers_know_the_question_not_the_picture() -> None:
    blind = MajorityAnswers()
    for answer in ("no", "no", "yes"):
        blind.update("Are there cones?", answer)
    blind.update("What color?", "red")
    assert blind.answer("Are there cones?") == "no"
    assert blind.answer("What color?") == "red"
    assert blind.answer("Never asked?") == "no"
    with pytest.raises(ValueError, match="no training answer"):
        MajorityAnswers().answer("x")


def test_an_untrained_ego_only_planner_drives_at_constant_velocity() -> None:
    torch.set_num_threads(1)
    ego = EgoState.fake(speed_mps=8.0)
    np.testing.assert_allclose(EgoOnlyPlanner(16).plan(ego, Command.LEFT), constant_velocity(ego), atol=1e-5)


def test_unknown_ego_values_and_commands_are_zero_and_flagged() -> None:
    known = ego_features(EgoState.fake(speed_mps=8.0), Command.LEFT)
    assert known.shape == (NUM_FEATURES,)
    assert known[-3:].tolist() == [1, 0, 0]
    ego = replace(EgoState.fake(speed_mps=8.0), motion_valid=False, past_valid=np.zeros(4, bool))
    assert not ego_features(ego, Command.UNKNOWN).any()


def test_the_ego_only_planner_learns() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    planner = EgoOnlyPlanner(32)
    features = torch.from_numpy(ego_features(EgoState.fake(speed_mps=8.0), Command.LEFT))[None]
    target = torch.zeros(1, 6, 3)
    optimizer = torch.optim.Adam(planner.parameters(), 1e-2)
    first = last = float("inf")
    for step in range(60):
        loss = (planner(features) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (float(loss), float(loss)) if step == 0 else (first, float(loss))
    assert last < 0.2 * first
