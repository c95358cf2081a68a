import numpy as np
import pytest

from sparseoccvla.metrics.intervals import by_scene, difference_by_scene, pooled
from sparseoccvla.metrics.occupancy import Mask, OccupancyMetric


def scenes(shares: list[float], frames: int = 4) -> dict[str, OccupancyMetric]:
    """One metric for each scene in which this share of voxels is right, all frames alike."""
    result = {}
    for index, share in enumerate(shares):
        metric = OccupancyMetric(Mask.NONE)
        truth = np.full(100, 4, np.uint8)
        predicted = np.where(np.arange(100) < 100 * share, 4, 17).astype(np.uint8)
        for _ in range(frames):
            metric.update(predicted, truth, None)
        result[f"scene-{index}"] = metric
    return result


def miou(metric: OccupancyMetric) -> float | None:
    return metric.result()["mIoU"]


def test_the_value_is_the_pooled_figure_and_lies_inside_its_interval() -> None:
    per_scene = scenes([0.2, 0.5, 0.6, 0.9])
    interval = by_scene(per_scene, miou)
    assert interval.value == miou(pooled(per_scene)) == pytest.approx(0.55)
    assert interval.low < interval.value < interval.high
    assert (interval.scenes, interval.resamples) == (4, 1000)


def test_more_frames_of_the_same_scenes_do_not_narrow_the_interval() -> None:
    few, many = by_scene(scenes([0.2, 0.8], 1), miou), by_scene(scenes([0.2, 0.8], 50), miou)
    assert (few.low, few.high) == (many.low, many.high)
    more_scenes = by_scene(scenes([0.2, 0.8] * 20), miou)
    assert more_scenes.high - more_scenes.low < (few.high - few.low) / 2


def test_a_difference_draws_the_same_scenes_for_both() -> None:
    better, worse = scenes([0.3, 0.6, 0.9]), scenes([0.2, 0.5, 0.8])
    difference = difference_by_scene(better, worse, miou)
    assert difference.excludes_zero
    assert difference.high - difference.low < 1e-9  # the scenes' spread cancels
    assert not difference_by_scene(scenes([0.2, 0.8]), scenes([0.8, 0.2]), miou).excludes_zero


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    per_scene = scenes([0.1, 0.5, 0.6, 0.9, 0.3])
    assert by_scene(per_scene, miou, seed=3) == by_scene(per_scene, miou, seed=3)
    assert by_scene(per_scene, miou, seed=3) != by_scene(per_scene, miou, seed=4)


def test_nothing_and_other_scenes_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no scene"):
        by_scene({}, miou)
    with pytest.raises(ValueError, match="only one of the two compared metrics has the scenes scene-1"):
        difference_by_scene(scenes([0.5]), scenes([0.5, 0.6]), miou)
    with pytest.raises(ValueError, match="None"):
        by_scene({"empty": OccupancyMetric(Mask.NONE)}, miou)
