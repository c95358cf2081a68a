import json
from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.anchors import (
    ANCHOR_SHAPE,
    analytic_anchors,
    kmeans_anchors,
    read_anchors,
    validate_anchors,
    write_anchors,
)
from sparseoccvla.contracts import Command
from sparseoccvla.errors import InputError


def test_analytic_anchors_bend_the_way_their_command_says() -> None:
    anchors = analytic_anchors()
    assert anchors.shape == ANCHOR_SHAPE
    end_y = anchors[:, :, -1, 1]
    assert (end_y[Command.LEFT.anchor_row] > 2.0).all()
    assert (end_y[Command.RIGHT.anchor_row] < -2.0).all()
    assert (end_y[Command.STRAIGHT.anchor_row] == 0).all()
    assert (np.diff(anchors[..., 0], axis=-1) > 0).all(), "anchors move forward at every step"


def test_analytic_anchors_are_gentle_when_fast() -> None:
    anchors = analytic_anchors().astype(float)
    steps = np.diff(np.concatenate([np.zeros((3, 6, 1, 2)), anchors], axis=2), axis=2)
    speed = np.linalg.norm(steps, axis=-1) / 0.5
    heading = np.arctan2(steps[..., 1], steps[..., 0])
    lateral = speed[..., 1:] * np.abs(np.diff(heading, axis=-1)) / 0.5
    assert lateral.max() < 3.1


def test_kmeans_finds_the_paths_it_was_given_and_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 3, 600)
    modes = rng.integers(0, 6, 600)
    truth = analytic_anchors()
    paths = truth[rows, modes] + rng.normal(0, 0.02, (600, 6, 2))
    found = kmeans_anchors(paths, rows, seed=3)
    # Shortest first is also the order of the analytic ones.
    assert np.abs(found - truth).max() < 0.1
    assert np.array_equal(found, kmeans_anchors(paths, rows, seed=3))


def test_kmeans_refuses_a_command_with_too_few_paths() -> None:
    paths = np.tile(analytic_anchors()[0], (2, 1, 1))
    with pytest.raises(InputError, match=r"anchor row 1 .* has 0 distinct paths of 0, wanted at least 6"):
        kmeans_anchors(paths, np.zeros(12, int), seed=0)


def test_a_table_in_right_left_order_is_refused() -> None:
    foreign = analytic_anchors()[[1, 0, 2]]
    with pytest.raises(InputError, match="are the commands in RIGHT LEFT order"):
        validate_anchors(foreign, "kmeans.npy")


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(6, 6, 2\), wanted finite \(3, 6, 6, 2\)"):
        validate_anchors(analytic_anchors()[0], "kmeans.npy")


def test_anchors_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "anchors.json"
    write_anchors(path, analytic_anchors(), "by hand")
    assert json.loads(path.read_text())["how"] == "by hand"
    assert np.abs(read_anchors(path) - analytic_anchors()).max() < 1e-4
