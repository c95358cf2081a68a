import numpy as np
import pytest

from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric

CAR, ROAD, WALL, FREE, IGNORED = 4, 11, 15, 17, 255


def scored(predicted, truth, convention=Convention.OCC3D):
    metric = OccupancyMetric(Mask.NONE, convention)
    metric.update(np.array(predicted, np.uint8), np.array(truth, np.uint8), None)
    return metric.result()


def test_iou_is_intersection_over_union_per_class() -> None:
    result = scored([CAR, CAR, ROAD, FREE], [CAR, ROAD, ROAD, FREE])
    assert result["per_class_iou"][CAR] == 0.5
    assert result["per_class_iou"][ROAD] == 0.5
    assert result["mIoU"] == 0.5
    assert result["IoU"] == 1.0  # the wrong class is still occupied


def test_a_perfect_prediction_scores_one_and_a_wrong_one_does_not() -> None:
    truth = [CAR, ROAD, WALL, FREE]
    assert scored(truth, truth)["mIoU"] == 1.0
    assert scored([ROAD, CAR, WALL, FREE], truth)["mIoU"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("convention", "only_predicted", "miou"),
    [
        (Convention.OCC3D, 0.0, (1 + 0) / 2),
        (Convention.SPARSEWORLD, 0.0, (1 + 0) / 2),
        (Convention.SPARSEOCC, None, 1.0),
        (Convention.OCCWORLD, 1.0, 1.0),
    ],
)
def test_a_class_that_is_only_predicted_counts_as_the_convention_says(
    convention: Convention, only_predicted: float | None, miou: float
) -> None:
    result = scored([ROAD, ROAD, CAR, FREE], [ROAD, ROAD, FREE, FREE], convention)
    assert result["per_class_iou"][CAR] == only_predicted
    assert result["mIoU"] == miou


def test_a_class_nobody_shows_is_left_out_except_by_occworld() -> None:
    assert scored([ROAD], [ROAD])["per_class_iou"][WALL] is None
    assert scored([ROAD], [ROAD], Convention.OCCWORLD)["per_class_iou"][WALL] == 1.0


def test_ignored_voxels_count_for_nobody() -> None:
    with_ignored = scored([CAR, ROAD, WALL], [CAR, ROAD, IGNORED])
    assert with_ignored == scored([CAR, ROAD], [CAR, ROAD])
    assert with_ignored != scored([CAR, ROAD, WALL], [CAR, ROAD, FREE])  # the control


def test_only_masked_voxels_count() -> None:
    metric = OccupancyMetric(Mask.CAMERA)
    predicted, truth = np.array([CAR, CAR], np.uint8), np.array([CAR, ROAD], np.uint8)
    metric.update(predicted, truth, np.array([True, False]))
    assert metric.result()["mIoU"] == 1.0


def test_samples_are_pooled_by_counts_not_by_averaging_scores() -> None:
    first, second = OccupancyMetric(Mask.NONE), OccupancyMetric(Mask.NONE)
    first.update(np.array([CAR] * 8, np.uint8), np.array([CAR] * 8, np.uint8), None)
    second.update(np.array([FREE] * 2, np.uint8), np.array([CAR] * 2, np.uint8), None)
    first.merge(second)
    assert first.result()["mIoU"] == 0.8  # the average of 1 and 0 would be 0.5


def test_merging_equals_scoring_together_and_metrics_of_other_settings_are_refused() -> None:
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 18, (2, 40), dtype=np.uint8) for _ in range(3)]
    whole, parts = OccupancyMetric(Mask.NONE), OccupancyMetric(Mask.NONE).empty()
    for predicted, truth in grids:
        whole.update(predicted, truth, None)
        single = whole.empty()
        single.update(predicted, truth, None)
        parts.merge(single)
    assert parts.result() == whole.result()
    with pytest.raises(ValueError, match="mask is"):
        whole.merge(OccupancyMetric(Mask.CAMERA))


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "shape"),
        (np.full(3, 255, np.uint8), np.zeros(3, np.uint8), r"labels 255\.\.255, wanted 0\.\.17"),
        (np.zeros(3, np.uint8), np.full(3, 18, np.uint8), "label 18"),
        (np.array([0, np.nan]), np.zeros(2, np.uint8), "1 values that are not finite"),
        (np.array([0.5, 1]), np.zeros(2, np.uint8), "integer labels"),
        (np.zeros(0, np.uint8), np.zeros(0, np.uint8), "wanted voxels"),
    ],
)
def test_unusable_grids_are_refused_by_name_and_add_nothing(predicted, truth, message) -> None:
    metric = OccupancyMetric(Mask.NONE)
    with pytest.raises(UnscorableError, match=message):
        metric.update(predicted, truth, None)
    assert metric.samples == 0
    assert metric.confusion.sum() == 0


def test_a_missing_mask_is_refused_not_replaced() -> None:
    grid = np.zeros(3, np.uint8)
    with pytest.raises(UnscorableError, match="mask_camera is missing"):
        OccupancyMetric(Mask.CAMERA).update(grid, grid, None)
    with pytest.raises(ValueError, match="every voxel"):
        OccupancyMetric(Mask.NONE).update(grid, grid, np.ones(3, bool))


def test_a_mean_of_nothing_is_none_not_zero() -> None:
    assert scored([FREE], [FREE])["mIoU"] is None
    assert scored([FREE], [FREE])["IoU"] is None
