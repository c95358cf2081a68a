import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.contracts import FREE_CLASS, NUM_CLASSES, Command
from sparseoccvla.encoder import Auxiliary, Decoded
from sparseoccvla.forecaster import ForecastStep
from sparseoccvla.planner import Diffusion, PlannerConfig, PlannerInputs
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.driving import dimmed, drawn_starts
from sparseoccvla.training.losses import (
    IGNORE,
    NO_TEXT,
    OccupancyLossConfig,
    OccupancyTarget,
    Term,
    auxiliary_terms,
    focal_loss,
    forecast_terms,
    nearest_anchor,
    occupancy_terms,
    reduce_terms,
    score_term,
    text_term,
    trajectory_term,
    weight_of,
)
from sparseoccvla.training.nearest import Neighbors, nearest_in_chunks

torch.set_num_threads(1)
PLAIN = OccupancyLossConfig(
    class_weights=(1.0,) * NUM_CLASSES,
    weigh_by_distance=False,
    missed_weight=1.0,
    rare_weight=1.0,
)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def scene(voxels: int = 300, seed: int = 0) -> OccupancyTarget:
    generator = seeded(seed)
    return OccupancyTarget(
        torch.rand(voxels, 3, generator=generator) * 20 - 10,
        torch.randint(NUM_CLASSES, (voxels,), generator=generator),
        torch.rand(voxels, generator=generator) > 0.5,
        torch.eye(4),
    )


def decoded(queries: int = 8, points: int = 16, classes: int = NUM_CLASSES, batch: int = 1) -> Decoded:
    generator = seeded(9)
    points_m = (torch.rand(batch, queries, points, 3, generator=generator) * 20 - 10).requires_grad_()
    logits = torch.randn(batch, queries, points, classes, generator=generator).requires_grad_()
    first = (torch.rand(batch, queries, 1, 3, generator=generator) * 20 - 10).requires_grad_()
    return Decoded(torch.zeros(batch, queries, 4), (logits,), (points_m,), first, None)


def test_neighbors_equal_brute_force_both_ways() -> None:
    points, queries = torch.randn(500, 3), torch.randn(700, 3)
    brute = (queries[:, None] - points[None]).norm(dim=-1).argmin(dim=1)
    assert torch.equal(Neighbors(points).nearest(queries), brute)
    assert torch.equal(nearest_in_chunks(queries, points, chunk=64), brute)


def test_the_point_loss_equals_brute_force() -> None:
    target, out = scene(), decoded()
    points_m = out.points_m[0][0].flatten(0, 1)
    gap = (points_m[:, None] - target.points_m[None]).norm(dim=-1)
    to_voxels = F.smooth_l1_loss(points_m[gap.argmin(0)], target.points_m, beta=0.2, reduction="none")
    to_points = F.smooth_l1_loss(points_m, target.points_m[gap.argmin(1)], beta=0.2, reduction="none")
    expected = 0.5 * (to_voxels.sum(1).mean() + to_points.sum(1).mean())
    term = occupancy_terms(out, [target], PLAIN)["points_0"]
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_drawing_points_keeps_the_loss_on_average() -> None:
    target, out = scene(), decoded(queries=16, points=64)
    whole = occupancy_terms(out, [target], PLAIN)
    some = replace(PLAIN, drawn_points=64)
    draws = [occupancy_terms(out, [target], some, [seeded(i)]) for i in range(40)]
    for name in ("points_0", "classes_0"):
        mean = sum((d[name].total / d[name].divisor).item() for d in draws) / len(draws)
        assert mean == pytest.approx((whole[name].total / whole[name].divisor).item(), rel=0.05)


def test_missed_and_rare_voxels_count_more_when_visible() -> None:
    target, out = scene(), decoded()
    base = occupancy_terms(out, [target], PLAIN)["points_0"].total
    missed = occupancy_terms(out, [target], replace(PLAIN, missed_weight=5.0))["points_0"].total
    assert missed > base
    blind = OccupancyTarget(
        target.points_m, target.labels, torch.zeros_like(target.visible), target.label_from_base
    )
    weighted = replace(PLAIN, missed_weight=5.0, rare_weight=10.0)
    assert occupancy_terms(out, [blind], weighted)["points_0"].total.item() == pytest.approx(base.item())


def test_standing_and_visible_voxels_are_drawn_in_the_wanted_shares() -> None:
    from sparseoccvla.training.losses import _drawn_voxels

    labels = torch.full((1000,), 11)
    labels[:50] = 4
    visible = torch.arange(1000) % 3 == 0
    target = OccupancyTarget(torch.randn(1000, 3), labels, visible, torch.eye(4))
    even = _drawn_voxels(target, replace(PLAIN, drawn_points=4000), seeded())
    shares = replace(PLAIN, drawn_points=4000, standing_share=0.5, visible_share=0.8)
    drawn = _drawn_voxels(target, shares, seeded())
    assert (labels[drawn] == 4).float().mean() == pytest.approx(0.5, abs=0.04)
    assert visible[drawn].float().mean() == pytest.approx(0.8, abs=0.04)
    assert (labels[even] == 4).float().mean() < 0.1
    assert visible[even].float().mean() < 0.4


def test_labels_at_another_time_are_met_by_moving_the_predictions() -> None:
    out, target = decoded(), scene()
    moved = torch.eye(4)
    moved[:3, 3] = torch.tensor([0.4, 0.0, 0.0])
    late = OccupancyTarget(target.points_m + moved[:3, 3], target.labels, target.visible, moved)
    for config in (PLAIN, replace(PLAIN, missed_weight=5.0)):
        expected = occupancy_terms(out, [target], config)
        got = occupancy_terms(out, [late], config)
        assert got["points_0"].total.item() == pytest.approx(expected["points_0"].total.item(), rel=1e-4)
    wrong = OccupancyTarget(late.points_m, target.labels, target.visible, torch.eye(4))
    assert occupancy_terms(out, [wrong], PLAIN)["points_0"].total.item() != pytest.approx(
        occupancy_terms(out, [target], PLAIN)["points_0"].total.item(), rel=1e-3
    )


def test_focal_loss_is_its_formula() -> None:
    logits, labels = torch.randn(50, NUM_CLASSES), torch.randint(NUM_CLASSES + 1, (50,))
    loss = focal_loss(logits, labels, 2.0, 0.25)
    p = logits.sigmoid()
    for row in range(50):
        for column in range(NUM_CLASSES):
            q = p[row, column]
            expected = (
                -0.25 * (1 - q) ** 2 * q.log() if labels[row] == column else -0.75 * q**2 * (1 - q).log()
            )
            assert loss[row, column].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_point_far_from_everything_is_free() -> None:
    target = OccupancyTarget(
        torch.zeros(1, 3), torch.tensor([4]), torch.ones(1, dtype=torch.bool), torch.eye(4)
    )
    points = torch.tensor([[[[0.1, 0, 0], [5.0, 0, 0]]]])
    logits = torch.zeros(1, 1, 2, NUM_CLASSES + 1)
    logits[..., 0, 4] = logits[..., 1, FREE_CLASS] = 20.0
    out = Decoded(torch.zeros(1, 1, 4), (logits,), (points,), points[:, :, :1], None)
    assert occupancy_terms(out, [target], PLAIN)["classes_0"].total < 1e-3
    assert occupancy_terms(out, [target], replace(PLAIN, free_beyond_m=9.0))["classes_0"].total > 1


def test_a_scene_without_voxels_gives_a_finite_loss() -> None:
    empty = OccupancyTarget(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), torch.eye(4)
    )
    for classes in (NUM_CLASSES, NUM_CLASSES + 1):
        loss, _ = reduce_terms(occupancy_terms(decoded(classes=classes), [empty], PLAIN), {})
        loss.backward()
        assert torch.isfinite(loss)


def test_gradients_reach_points_logits_and_initial_points() -> None:
    for classes in (NUM_CLASSES, NUM_CLASSES + 1):
        out = decoded(classes=classes)
        reduce_terms(occupancy_terms(out, [scene()], PLAIN), {})[0].backward()
        for tensor in (out.points_m[0], out.logits[0], out.initial_points_m):
            assert tensor.grad is not None
            assert (tensor.grad != 0).any()


def test_a_horizon_without_known_future_counts_nothing() -> None:
    out = decoded(batch=2)
    step = ForecastStep(out.points_m[0], out.logits[0])
    terms = forecast_terms([step] * 3, [[scene(), scene(seed=1)], [None, scene()], [None, None]], PLAIN)
    assert [float(terms[f"forecast_points_{i}"].divisor) for i in range(3)] == [2, 1, 0]
    assert terms["forecast_points_2"].total == 0


def forecast_of(point_m: tuple[float, float, float], label: int) -> tuple[ForecastStep, torch.Tensor]:
    """One point of a class now, sure of nothing later."""
    points_m = torch.tensor(point_m).view(1, 1, 1, 3).requires_grad_()
    logits = torch.zeros(1, 1, 1, NUM_CLASSES + 1, requires_grad=True)
    return ForecastStep(points_m, logits), torch.full((1, 1, 1), label, dtype=torch.int32)


def ground_and_car(car_x_m: float) -> OccupancyTarget:
    """Ground half a meter under the origin, and a car ahead."""
    points_m = torch.tensor([[0.0, 0.0, -0.5], [car_x_m, 0.0, 0.0]])
    return OccupancyTarget(points_m, torch.tensor([11, 4]), torch.ones(2, dtype=torch.bool), torch.eye(4))


def pull_on(label: int, car_x_m: float) -> torch.Tensor:
    """Gradient (3,) of the points' term on a point at the origin."""
    step, labels = forecast_of((0.0, 0.0, 0.0), label)
    terms = forecast_terms([step], [[ground_and_car(car_x_m)]], PLAIN, labels=labels)
    terms["forecast_points_0"].total.backward()
    assert step.points_m.grad is not None
    return step.points_m.grad.flatten()


def test_a_forecast_car_is_drawn_to_cars_and_not_to_the_nearer_ground() -> None:
    pull = pull_on(label=4, car_x_m=1.5)
    assert pull[0] < 0
    assert pull[2] == 0
    step, _ = forecast_of((0.0, 0.0, 0.0), 4)
    terms = forecast_terms([step], [[ground_and_car(1.5)]], PLAIN)  # the paper's: any class
    terms["forecast_points_0"].total.backward()
    assert step.points_m.grad is not None
    assert step.points_m.grad.flatten()[2] > 0


def test_a_forecast_car_without_a_car_in_reach_is_left_alone() -> None:
    assert pull_on(label=4, car_x_m=PLAIN.movable_reach_m - 0.1).any()
    assert not pull_on(label=4, car_x_m=PLAIN.movable_reach_m + 0.1).any()


def test_what_can_not_move_is_not_asked() -> None:
    assert not pull_on(label=11, car_x_m=1.5).any()
    step, labels = forecast_of((0.0, 0.0, 0.0), 4)
    alone = forecast_terms([step], [[ground_and_car(1.5)]], PLAIN, labels=labels)
    assert set(alone) == {"forecast_points_0"}, "nor are classes"
    step = ForecastStep(step.points_m.repeat(1, 1, 4, 1), step.logits.repeat(1, 1, 4, 1))
    labels = torch.tensor([4, 11, 11, 11], dtype=torch.int32).view(1, 1, 4)
    among = forecast_terms([step], [[ground_and_car(1.5)]], PLAIN, labels=labels)
    assert torch.equal(among["forecast_points_0"].total, alone["forecast_points_0"].total)
    assert among["forecast_points_0"].divisor == alone["forecast_points_0"].divisor == 1


@pytest.mark.parametrize("voxels", [None, 0, 40], ids=["unknown", "empty", "ground"])
def test_a_future_without_anything_movable_moves_nothing(voxels: int | None) -> None:
    target = None
    if voxels is not None:
        seen = torch.ones(voxels, dtype=torch.bool)
        target = OccupancyTarget(torch.randn(voxels, 3), torch.full((voxels,), 11), seen, torch.eye(4))
    step, labels = forecast_of((0.0, 0.0, 0.0), 4)
    loss, _ = reduce_terms(forecast_terms([step], [[target]], PLAIN, labels=labels), {})
    loss.backward()
    assert loss == 0
    assert step.points_m.grad is not None
    assert not step.points_m.grad.any()


def test_pixels_that_say_nothing_are_left_out_of_the_auxiliary_loss() -> None:
    logits = torch.zeros(1, 1, NUM_CLASSES + 1, 2, 2)
    labels = torch.tensor([[[[4, IGNORE], [FREE_CLASS, 11]]]])
    depth_m = torch.tensor([[[[10.0, 0.0], [0.0, 20.0]]]])
    auxiliary = Auxiliary(logits, torch.full((1, 1, 2, 2), 10.0).log())
    terms = auxiliary_terms(auxiliary, labels, depth_m, PLAIN)
    assert terms["auxiliary_classes"].divisor == 3
    assert terms["auxiliary_depth"].divisor == 2
    assert terms["auxiliary_depth"].total.item() == pytest.approx(0.6931, abs=1e-3)


def test_a_pixel_of_a_rare_class_counts_for_many() -> None:
    """One of two pixels is a pedestrian's, and both say road: loss and depth are mostly the pedestrian's."""
    logits = torch.zeros(1, 1, NUM_CLASSES + 1, 1, 2)
    logits[:, :, 11] = 5.0
    labels, depth_m = torch.tensor([[[[7, 11]]]]), torch.tensor([[[[20.0, 10.0]]]])
    auxiliary = Auxiliary(logits, torch.full((1, 1, 1, 2), 10.0).log())
    weights = tuple(3.0 if index == 7 else 1.0 for index in range(NUM_CLASSES))
    terms = auxiliary_terms(auxiliary, labels, depth_m, replace(PLAIN, class_weights=weights))
    depth, classes = terms["auxiliary_depth"], terms["auxiliary_classes"]
    assert float(depth.total / depth.divisor) == pytest.approx(0.75 * math.log(2))
    plain = auxiliary_terms(auxiliary, labels, depth_m, PLAIN)["auxiliary_classes"]
    assert classes.total / classes.divisor > 1.4 * plain.total / plain.divisor


ANCHORS = torch.from_numpy(analytic_anchors()).flatten(0, 1)


def test_the_nearest_anchor_is_one_of_the_command() -> None:
    straight = ANCHORS[15]
    rows = torch.tensor([Command.STRAIGHT.anchor_row, Command.LEFT.anchor_row])
    valid = torch.ones(2, 6, dtype=torch.bool)
    found = nearest_anchor(ANCHORS, torch.stack([straight, straight]), valid, rows)
    assert found[0] == 15
    assert found[1] < 6


def test_the_scorer_draws_where_some_paths_start() -> None:
    logits = torch.full((2, len(ANCHORS)), -4.0)
    logits[:, :12] = 9.0  # of other commands
    logits[:, 16] = 8.0
    nearest, rows = torch.tensor([13, 14]), torch.tensor([2, 2])

    def starts(share: float) -> list[int]:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return drawn_starts(logits, nearest, rows, share, generators).tolist()

    assert starts(0.0) == [13, 14]
    assert starts(1.0) == [16, 16]
    some = [
        drawn_starts(logits[:1], nearest[:1], rows[:1], 0.5, [torch.Generator().manual_seed(i)])
        for i in range(200)
    ]
    assert 0.4 < sum(start.item() == 16 for start in some) / 200 < 0.6


def test_a_share_of_what_the_planner_sees_is_dropped_in_training() -> None:
    count = 400
    ones = PlannerInputs(torch.ones(count, 5, 8), torch.ones(count, 5, 2, 3), *(torch.ones(count, 1),) * 4)
    generators = [seeded(number) for number in range(count)]
    assert dimmed(ones, DrivingTraining(), generators) is ones
    got = dimmed(ones, DrivingTraining(blurred_share=0.5, blind_share=0.25), generators)
    blind = (got.points_m == 0).all(dim=(1, 2, 3))
    assert 0.2 < blind.float().mean() < 0.3
    assert (got.features[blind] == 0).all()
    assert (got.points_m[~blind] == 1).all()
    assert set(got.features[~blind].unique().tolist()) == {0.0, 2.0}
    assert got.features[~blind].mean().item() == pytest.approx(1.0, abs=0.03)
    assert got.ego is ones.ego


def test_unknown_steps_do_not_choose_the_anchor() -> None:
    path = ANCHORS[14].clone()
    path[3:] = 1000.0
    valid = torch.tensor([[True] * 3 + [False] * 3])
    assert nearest_anchor(ANCHORS, path[None], valid, torch.tensor([2])) == 14


def test_scores_are_right_when_only_the_positive_is_high() -> None:
    logits = torch.full((2, 18), -10.0)
    logits[0, 3] = logits[1, 7] = 10.0
    valid = torch.ones(2)
    assert score_term(logits, torch.tensor([3, 7]), valid).total < 1e-3
    assert score_term(logits, torch.tensor([3, 8]), valid).total > 1
    assert score_term(logits, torch.tensor([3, 8]), torch.tensor([1.0, 0.0])).total < 1e-3


def test_the_trajectory_loss_is_in_meters_and_stops_at_the_first_unknown_step() -> None:
    diffusion = Diffusion(PlannerConfig())
    future = ANCHORS[None, 14]
    off = future.clone()
    off[..., 0] += 1.0  # one meter farther, all of it in the first step
    clean = diffusion.normalized_offsets(off[:, None])
    term = trajectory_term(clean, future, torch.ones(1, 6, dtype=torch.bool), diffusion)
    assert term.total.item() == pytest.approx(1.0, abs=1e-4)
    assert term.divisor == 6
    known = torch.tensor([[True, True, False, True, True, True]])
    assert trajectory_term(clean, future, known, diffusion).divisor == 2


def test_text_loss_asks_only_for_marked_tokens() -> None:
    logits = torch.zeros(1, 4, 10)
    logits[0, 1, 7] = 50.0
    ids = torch.tensor([[NO_TEXT, NO_TEXT, 7, NO_TEXT]])
    term = text_term(logits, ids)
    assert (term.divisor.item(), round(term.total.item(), 4)) == (1, 0.0)


def test_two_processes_give_the_loss_of_one() -> None:
    terms = [Term(torch.tensor(6.0), torch.tensor(2.0)), Term(torch.tensor(1.0), torch.tensor(3.0))]
    together, _ = reduce_terms({"a": Term(torch.tensor(7.0), torch.tensor(5.0))}, {})
    halves = [
        reduce_terms({"a": term}, {}, sum_over_processes=lambda n: torch.tensor([5.0]), processes=2)[0]
        for term in terms
    ]
    assert (sum(halves) / 2).item() == pytest.approx(together.item())
    naive = sum(reduce_terms({"a": term}, {})[0] for term in terms) / 2
    assert naive.item() != pytest.approx(together.item())


def test_the_longest_name_decides_a_weight() -> None:
    weights = {"points": 2.0, "points_1": 3.0}
    assert [weight_of(n, weights) for n in ("points_0", "points_1", "classes_0")] == [2.0, 3.0, 1.0]
