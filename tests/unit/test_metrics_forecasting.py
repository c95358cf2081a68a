import numpy as np
import pytest

from sparseoccvla.contracts import FREE_CLASS
from sparseoccvla.geometry import planar_matrix
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.baselines import persistence
from sparseoccvla.metrics.forecasting import EgoMotion, ForecastMetric, regrid

CAR = 4


def scene() -> np.ndarray:
    grid = np.full((200, 200, 16), FREE_CLASS, np.uint8)
    grid[120:124, 98:102, 2:6] = CAR  # 8 to 9.6 m ahead
    return grid


def test_what_stands_comes_nearer_when_the_vehicle_drives() -> None:
    moved, inside = regrid(scene(), planar_matrix(4.0, 0.0, 0.0))
    assert (np.argwhere(moved == CAR)[:, 0].min(), np.argwhere(moved == CAR)[:, 0].max()) == (110, 113)
    assert inside.mean() == pytest.approx(0.95)  # 4 of 80 m ahead were never forecast
    assert (moved[~inside] == FREE_CLASS).all()


def test_turning_left_moves_what_is_ahead_to_the_right() -> None:
    moved, _ = regrid(scene(), planar_matrix(0.0, 0.0, np.pi / 2))
    x, y, _ = np.argwhere(moved == CAR).mean(axis=0)
    assert (x, y) == (99.5, pytest.approx(100 - 22, abs=0.6))


def metric_of(forecasts, motion: EgoMotion = EgoMotion.LOGGED) -> ForecastMetric:
    """A standing world; the vehicle drives 4 m a second."""
    motions = [planar_matrix(4.0 * seconds, 0, 0) for seconds in (1, 2, 3)]
    truths = [regrid(scene(), m)[0] for m in motions]
    metric = ForecastMetric(motion)
    metric.update(forecasts, truths, motions)
    return metric


def test_persistence_of_a_standing_world_is_perfect_in_each_future_frame() -> None:
    result = metric_of(persistence(scene())).result()
    assert [result[h]["mIoU"] for h in ("1s", "2s", "3s")] == [1.0, 1.0, 1.0]
    assert result["mIoU_avg"] == 1.0


def test_a_forecast_without_the_motion_is_worse() -> None:
    truths = [regrid(scene(), planar_matrix(4.0 * s, 0, 0))[0] for s in (1, 2, 3)]
    blind = ForecastMetric(EgoMotion.NONE)
    blind.update(persistence(scene()), truths, [np.eye(4)] * 3)
    assert blind.result()["mIoU_avg"] == 0.0


def test_a_sample_that_fails_at_one_horizon_adds_nothing_at_all() -> None:
    metric = metric_of(persistence(scene()))
    before = metric.result()
    with pytest.raises(UnscorableError, match="shape"):
        metric.update(persistence(scene()), [scene(), scene(), scene()[:5]], [np.eye(4)] * 3)
    assert metric.result() == before


def test_forecasts_through_different_motions_do_not_mix() -> None:
    with pytest.raises(ValueError, match="logged"):
        ForecastMetric(EgoMotion.PLAN).merge(metric_of(persistence(scene())))
