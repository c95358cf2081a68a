"""Nothing infeasible, stale or made up leaves the guard, and it always has an answer."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from itertools import pairwise
from subprocess import run

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparseoccvla.config import GuardConfig
from sparseoccvla.contracts import (
    HORIZON_S,
    NS_PER_S,
    NUM_ANCHORS,
    NUM_MODES,
    NUM_STEPS,
    STEP_S,
    Command,
    EgoState,
    PlannedTrajectory,
    PlanProposal,
    PlanStatus,
    Source,
)
from sparseoccvla.geometry import arc_pose, inverse, planar_matrix, planar_pose
from sparseoccvla.guard import Guard, braking
from sparseoccvla.plan_checks import CANDIDATE_CHECKS, Verdict, read_motion

CONFIG = GuardConfig()
NOW_NS = 100 * NS_PER_S
T0_NS = NOW_NS - 200_000_000
TIMES_S = STEP_S * np.arange(1, NUM_STEPS + 1)
STRAIGHT = slice(12, 18)
EGO = EgoState.fake(NOW_NS, speed_mps=8.0)


def propose(
    proposal: PlanProposal | None = None, ego: EgoState | None = EGO, now_ns: int = NOW_NS
) -> PlannedTrajectory:
    result = Guard(CONFIG).propose(proposal or PlanProposal.fake(T0_NS), ego, now_ns)
    assert result is not None
    return result.validate()


def only(poses: np.ndarray, speed_mps: float = 8.0) -> PlannedTrajectory:
    """What becomes of a proposal whose six candidates of the command are all these poses."""
    proposal = PlanProposal.fake(T0_NS, speed_mps)
    candidates = proposal.candidates.copy()
    candidates[STRAIGHT] = poses
    return propose(replace(proposal, candidates=candidates), replace(EGO, speed_mps=speed_mps))


def arc(speed: float, curvature: float = 0.0, acceleration: float = 0.0) -> np.ndarray:
    """(6, 3) poses of a motion that stops rather than turning back."""
    times = np.minimum(TIMES_S, -speed / acceleration) if acceleration < 0 else TIMES_S
    length = speed * times + acceleration * times**2 / 2
    return arc_pose(length, curvature * length)


# --- what passes


@pytest.mark.parametrize("speed", [0.0, 0.3, 2.0, 8.0, 20.0, 33.0])
@pytest.mark.parametrize("command", [Command.LEFT, Command.RIGHT, Command.STRAIGHT, Command.UNKNOWN])
def test_a_good_proposal_passes_unchanged(speed: float, command: Command) -> None:
    chosen = command.anchor_row * NUM_MODES + NUM_MODES - 1
    proposal = replace(PlanProposal.fake(T0_NS, speed), command=command, chosen=chosen)
    result = propose(proposal, replace(EGO, speed_mps=speed))
    assert (result.source, result.status, result.reason) == (Source.MODEL, PlanStatus.OK, "")
    assert (result.t0_ns, result.chosen, result.command) == (T0_NS, chosen, command)
    assert (result.stamp_source, result.camera_age_s) == ("cam_front", pytest.approx(0.2))
    assert result.valid_until_ns == NOW_NS + round(CONFIG.validity_s * NS_PER_S)
    np.testing.assert_array_equal(result.poses, proposal.trajectory)
    np.testing.assert_allclose(result.speeds_mps, speed, atol=0.05)


@pytest.mark.parametrize(
    "poses",
    [
        arc(8.0, acceleration=-6.0),
        arc(8.0, acceleration=3.0),
        arc(5.0, curvature=0.2),
        arc(0.0, acceleration=2.0),
        np.zeros((6, 3)),
    ],
    ids=["emergency stop", "speeding up", "tight turn", "setting off", "standing"],
)
def test_ordinary_maneuvers_pass(poses: np.ndarray) -> None:
    speed = float(read_motion(poses).step_speeds_mps[0])
    assert only(poses, speed).source is Source.MODEL


def test_a_standing_vehicle_with_noisy_waypoints_may_go_on_standing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        noise = rng.normal(0, (0.02, 0.02, 0.02), (6, 3))
        assert only(noise, 0.0).source is Source.MODEL


def test_stop_and_go_passes() -> None:
    along = np.array([1.5, 2.0, 2.0, 2.0, 2.4, 3.4])
    poses = np.stack([along, np.zeros(6), np.zeros(6)], axis=1)
    assert only(poses, 3.5).source is Source.MODEL


def test_degraded_bits_reasoning_age_and_camera_are_passed_on() -> None:
    proposal = replace(
        PlanProposal.fake(T0_NS),
        status=PlanStatus.DEGRADED_NO_COMMAND | PlanStatus.COLLISION,
        reasoning_t0_ns=T0_NS - NS_PER_S // 2,
        stamp_source="cam_back",
    )
    result = propose(proposal)
    assert result.status == PlanStatus.DEGRADED_NO_COMMAND, "a planner can't speak for the guard"
    assert result.reasoning_age_s == pytest.approx(0.5)
    assert result.stamp_source == "cam_back"
    assert math.isnan(propose().reasoning_age_s)


@pytest.mark.real_data
@pytest.mark.parametrize("scene", ["0061", "0103", "0553", "0757", "0916", "1077"])
def test_how_people_really_drove_is_feasible(real_data, scene: str) -> None:
    recorded = np.load(real_data / "trajectories" / f"scene-{scene}.npz", allow_pickle=False)
    poses = np.column_stack([recorded["ego_xyz_10hz"][:, :2], recorded["ego_heading_10hz"]])
    # The last rows of some files hold a step that no vehicle made.
    for i in range(2, len(poses) - 34):
        base_from_map = inverse(planar_matrix(*poses[i]))
        future = [planar_pose(base_from_map @ planar_matrix(*poses[i + 5 * k])) for k in range(1, 7)]
        speed = float(np.hypot(*(poses[i] - poses[i - 1])[:2]) / 0.1)
        result = only(np.array(future), speed)
        assert result.source is Source.MODEL, result.reason


# --- what does not


def sideways() -> np.ndarray:
    poses = arc(8.0)
    poses[:, 2] = 0.8
    return poses


def on_the_spot() -> np.ndarray:
    return np.stack([np.zeros(6), np.zeros(6), 0.5 * np.arange(1, 7)], axis=1)


def corner_after_a_stop() -> np.ndarray:
    """Stops, then goes off to the left: each step is harmless, the path has a right angle."""
    points = np.array([[1.5, 0], [2.0, 0], [2.05, 0], [2.05, 0.3], [2.05, 1.0], [2.05, 2.2]])
    return np.column_stack([points, [0, 0, 0.1, np.pi / 2, np.pi / 2, np.pi / 2]])


def zigzag() -> np.ndarray:
    poses = arc(15.0)
    poses[:, 1] = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    return poses


@pytest.mark.parametrize(
    ("poses", "speed", "text"),
    [
        (arc(41.0), 40.0, r"drives at 41.0 m/s, at most 40"),
        (arc(12.0), 8.0, r"starts at 12.0 m/s while the vehicle drives at 8.0, at most 3 apart"),
        (arc(8.0, acceleration=8.0), 8.0, r"speeds up by 8.0 m/s\^2, at most 6"),
        (arc(30.0, acceleration=-11.0), 28.0, r"brakes by 11.0 m/s\^2, at most 9"),
        (arc(-1.0), 0.0, r"leads 3.00 m backwards, at most 0.3"),
        (arc(15.0, 0.06), 15.0, r"turns with \d+.\d m/s\^2 of lateral acceleration, at most 7"),
        (zigzag(), 15.0, r"turns with \d+.\d m/s\^2 of lateral acceleration"),
        (arc(3.0, 0.5), 3.0, r"turns by 0.75 rad over 1.47 m, a curvature of 0.\d+ 1/m, at most 0.25"),
        (
            corner_after_a_stop(),
            3.5,
            r"turns by 1.41 rad over 0.40 m, a curvature of \d.\d+ 1/m, at most 0.25",
        ),
        (sideways(), 8.0, r"looks 0.80 rad off the way it drives in step 1"),
        (on_the_spot(), 0.0, r"turns by 0.50 rad within 0.00 m, at most 0.10"),
    ],
    ids=[
        "speed",
        "start",
        "speeding up",
        "braking",
        "backwards",
        "lateral",
        "zigzag",
        "curvature",
        "corner",
        "sideways",
        "spot",
    ],
)
def test_what_no_vehicle_can_do_becomes_braking(poses: np.ndarray, speed: float, text: str) -> None:
    result = only(poses, speed)
    assert result.source is Source.FALLBACK
    assert result.status == PlanStatus.INFEASIBLE
    assert re.match("no candidate of STRAIGHT can be followed: candidate 17 " + text, result.reason)
    assert (result.stamp_source, result.t0_ns, result.chosen) == ("odometry", EGO.stamp_ns, -1)


def test_the_next_best_of_the_same_command_is_taken() -> None:
    proposal = PlanProposal.fake(T0_NS)
    candidates, scores = proposal.candidates.copy(), proposal.scores.copy()
    candidates[17, 3, 1] = np.nan
    scores[12:17] = [0.1, 0.5, 0.4, 0.3, 0.2]
    scores[0] = 0.99  # another command's best must not come in
    result = propose(replace(proposal, candidates=candidates, scores=scores))
    assert (result.source, result.chosen) == (Source.MODEL, 13)
    assert result.status == PlanStatus.NEXT_BEST_CANDIDATE
    assert result.reason == "candidate 17 has 1 of 18 values that are not finite"
    np.testing.assert_array_equal(result.poses, candidates[13])


def test_a_choice_of_another_command_is_not_followed() -> None:
    result = propose(replace(PlanProposal.fake(T0_NS), chosen=0))
    assert (result.chosen, result.status) == (17, PlanStatus.NEXT_BEST_CANDIDATE)
    assert result.reason == "candidate 0 is none of STRAIGHT"


def test_equal_scores_are_taken_in_their_order() -> None:
    proposal = PlanProposal.fake(T0_NS)
    candidates = proposal.candidates.copy()
    candidates[17] = np.nan
    result = propose(replace(proposal, candidates=candidates, scores=np.full(NUM_ANCHORS, 0.5)))
    assert result.chosen == 12


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"candidates": np.zeros((18, 6, 2))}, r"proposal has candidates float64 \(18, 6, 2\), wanted float"),
        ({"candidates": [[0.0]]}, r"proposal has candidates list, wanted float \(18, 6, 3\)"),
        ({"candidates": np.zeros((18, 6, 3), int)}, r"proposal has candidates int64 \(18, 6, 3\)"),
        ({"scores": np.zeros(3)}, r"proposal has scores float64 \(3,\), wanted float \(18,\)"),
        (
            {"candidates": np.full((18, 6, 3), np.inf)},
            r"candidate 17 has 18 of 18 values that are not finite",
        ),
        ({"scores": np.full(18, np.nan)}, r"candidate 17 has score nan"),
    ],
)
def test_malformed_proposals_become_braking(changes: dict, text: str) -> None:
    result = propose(replace(PlanProposal.fake(T0_NS), **changes))
    assert (result.source, result.status) == (Source.FALLBACK, PlanStatus.NOT_FINITE)
    assert re.search(text, result.reason)


@pytest.mark.parametrize(
    ("t0_ns", "text"),
    [
        (NOW_NS - 900_000_000, "proposal is 0.90 s old, at most 0.8 s"),
        (NOW_NS + 200_000_000, "proposal is 0.20 s in the future, at most 0.1 s"),
        (
            NS_PER_S,
            "proposal is 9999.00 s old, at most 0.8 s; "
            "is a bag played without its clock (use_sim_time, --clock)?",
        ),
    ],
)
def test_stale_proposals_become_braking(t0_ns: int, text: str) -> None:
    now_ns = NOW_NS if t0_ns > NS_PER_S else 10_000 * NS_PER_S
    result = propose(PlanProposal.fake(t0_ns), replace(EGO, stamp_ns=now_ns), now_ns)
    assert (result.source, result.status, result.reason) == (Source.FALLBACK, PlanStatus.STALE, text)


def test_the_start_is_judged_by_the_speed_at_t0() -> None:
    """Braking at 6 m/s^2, 0.5 s after t0: the vehicle is 3 m/s slower now than the plan's start."""
    ego = replace(EGO, speed_mps=10.0, acceleration_mps2=-6.0)
    t0_ns = NOW_NS - 500_000_000
    proposal = PlanProposal.fake(t0_ns, 13.5)
    assert propose(proposal, ego).source is Source.MODEL
    assert propose(proposal, replace(ego, acceleration_mps2=0.0)).chosen != proposal.chosen


# --- stragglers, silence, loss


def test_an_old_plan_is_never_sent_as_a_new_one() -> None:
    guard = Guard(CONFIG)
    proposal = PlanProposal.fake(T0_NS)
    first = guard.propose(proposal, EGO, NOW_NS)
    assert first is not None
    assert first.source is Source.MODEL
    assert guard.propose(proposal, EGO, NOW_NS + 1) is None, "the same again"
    assert guard.propose(replace(proposal, t0_ns=T0_NS - 1), EGO, NOW_NS + 2) is None, "a straggler"
    assert guard.counters.ignored == 2
    later = NOW_NS + 700_000_000
    ego = replace(EGO, stamp_ns=later)
    result = guard.poll(later, ego)
    assert result is not None
    assert result.source is Source.FALLBACK, "stragglers do not keep the watchdog quiet"


def test_poll_is_silent_while_proposals_come_and_brakes_when_none_does() -> None:
    guard = Guard(CONFIG)
    guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    for passed_s, silent in ((0.1, True), (0.6, True), (0.61, False), (0.7, False)):
        now_ns = NOW_NS + round(passed_s * NS_PER_S)
        result = guard.poll(now_ns, replace(EGO, stamp_ns=now_ns))
        assert (result is None) == silent
        if result is not None:
            assert (result.source, result.status) == (Source.FALLBACK, PlanStatus.NO_PROPOSAL)
            assert (result.t0_ns, result.stamp_source) == (now_ns, "odometry"), "made from the newest motion"
            assert result.command is Command.STRAIGHT
            assert result.reason.startswith("no proposal for 0.")
    now_ns = NOW_NS + NS_PER_S
    back = guard.propose(PlanProposal.fake(now_ns), replace(EGO, stamp_ns=now_ns), now_ns)
    assert back is not None
    assert back.source is Source.MODEL
    assert guard.poll(now_ns + 1, replace(EGO, stamp_ns=now_ns)) is None


def test_after_a_refusal_braking_goes_on_until_a_good_proposal() -> None:
    guard = Guard(CONFIG)
    guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    bad = replace(PlanProposal.fake(T0_NS + 1), candidates=np.full((18, 6, 3), np.nan))
    assert guard.propose(bad, EGO, NOW_NS + 1).source is Source.FALLBACK
    polled = guard.poll(NOW_NS + 100_000_000, replace(EGO, stamp_ns=NOW_NS + 100_000_000))
    assert polled is not None
    assert polled.status == PlanStatus.NOT_FINITE
    assert polled.t0_ns == NOW_NS + 100_000_000
    assert guard.propose(PlanProposal.fake(T0_NS + 2), EGO, NOW_NS + 3).source is Source.MODEL
    assert guard.poll(NOW_NS + 4, EGO) is None
    assert guard.counters.refused == {"NOT_FINITE": 1}


def test_at_the_start_the_guard_waits_for_a_first_proposal_then_brakes() -> None:
    guard = Guard(CONFIG)
    assert guard.poll(NOW_NS, EGO) is None
    assert guard.poll(NOW_NS + 500_000_000, EGO) is None
    result = guard.poll(NOW_NS + 700_000_000, replace(EGO, stamp_ns=NOW_NS + 700_000_000))
    assert result is not None
    assert (result.status, result.reason) == (PlanStatus.NO_PROPOSAL, "no proposal yet")


def test_lost_odometry_means_braking_from_the_last_known_motion_at_once() -> None:
    guard = Guard(CONFIG)
    guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    result = guard.poll(NOW_NS + 100_000_000, None)
    assert result is not None
    assert (result.status, result.reason) == (PlanStatus.NO_ODOMETRY, "no odometry")
    assert result.t0_ns == EGO.stamp_ns
    assert result.speeds_mps[0] == pytest.approx(8.0 - CONFIG.braking_mps2 * STEP_S)
    refused = guard.propose(PlanProposal.fake(T0_NS + 1), None, NOW_NS + 200_000_000)
    assert refused is not None
    assert (refused.source, refused.status) == (Source.FALLBACK, PlanStatus.NO_ODOMETRY)


def test_a_motion_older_than_the_horizon_is_none() -> None:
    guard = Guard(CONFIG)
    guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    now_ns = NOW_NS + round(HORIZON_S * NS_PER_S)
    result = guard.poll(now_ns, None)
    assert result is not None
    assert (result.t0_ns, result.stamp_source) == (now_ns, "clock")
    assert not result.poses.any()


@pytest.mark.parametrize(
    ("ego", "text"),
    [
        (None, "no odometry"),
        (replace(EGO, motion_valid=False), "odometry does not tell the vehicle's motion yet"),
        (replace(EGO, speed_mps=float("nan")), "odometry says nan m/s"),
        (replace(EGO, speed_mps=1e6), "odometry says 1e+06 m/s"),
        (replace(EGO, yaw_rate_radps=float("inf")), "0 m/s^2, inf rad/s, wanted finite"),
    ],
)
def test_without_any_known_motion_the_guard_stands_still(ego: EgoState | None, text: str) -> None:
    result = propose(ego=ego)
    assert (result.source, result.status) == (Source.FALLBACK, PlanStatus.NO_ODOMETRY)
    assert text in result.reason
    assert (result.stamp_source, result.t0_ns) == ("clock", NOW_NS)
    assert not result.poses.any()
    assert not result.speeds_mps.any()
    silent = Guard(CONFIG)
    silent.poll(NOW_NS, ego)
    both = silent.poll(NOW_NS + NS_PER_S, ego)
    assert both is not None
    assert both.status == PlanStatus.NO_ODOMETRY | PlanStatus.NO_PROPOSAL
    assert both.reason.endswith("; no proposal yet")


def test_a_clock_that_jumps_back_begins_a_new_life() -> None:
    """A bag that loops: the second pass must not be taken for stragglers of the first."""
    guard = Guard(CONFIG)
    guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    now_ns = NOW_NS - 20 * NS_PER_S
    ego = replace(EGO, stamp_ns=now_ns)
    assert guard.poll(now_ns, ego) is None
    result = guard.propose(PlanProposal.fake(now_ns), ego, now_ns)
    assert result is not None
    assert result.source is Source.MODEL
    assert guard.counters.resets == 1


def test_a_check_of_ones_own_joins_the_others() -> None:
    """How collision checks come in: a function of the trajectory, added to the tuple."""

    def blocked(plan, _speed, _config) -> Verdict | None:
        return Verdict(PlanStatus.COLLISION, "hits a wall") if plan.poses[-1, 0] > 20 else None

    guard = Guard(CONFIG, (*CANDIDATE_CHECKS, blocked))
    result = guard.propose(PlanProposal.fake(T0_NS), EGO, NOW_NS)
    assert result is not None
    assert result.reason == "candidate 17 hits a wall"
    assert result.status == PlanStatus.NEXT_BEST_CANDIDATE
    assert result.poses[-1, 0] <= 20


# --- braking


@settings(max_examples=300, deadline=None)
@given(speed=st.floats(-5, 40), yaw_rate=st.floats(-2, 2), braking_mps2=st.floats(0.5, 9))
@example(speed=13.654539125803009, yaw_rate=0.0, braking_mps2=9.0)  # was refused by the last bit
def test_braking_is_monotone_continuous_and_feasible(
    speed: float, yaw_rate: float, braking_mps2: float
) -> None:
    config = GuardConfig(braking_mps2=braking_mps2)
    motion = replace(EGO, speed_mps=speed, yaw_rate_radps=yaw_rate)
    plan = braking(motion, config)
    speeds = np.concatenate([[speed], plan.speeds_mps])
    assert (np.diff(np.abs(speeds)) <= 1e-9).all(), "never faster again"
    assert (np.abs(np.diff(speeds)) <= braking_mps2 * STEP_S + 1e-9).all(), "never harder than set"
    assert (speeds * speed >= 0).all(), "never turns back"
    # Poses, speeds and accelerations tell the same story: re-integrate finely.
    t = np.linspace(0, HORIZON_S, 3001)
    v = np.sign(speed) * np.maximum(abs(speed) - braking_mps2 * t, 0)
    s = np.concatenate([[0], np.cumsum((v[1:] + v[:-1]) / 2) * (t[1] - t[0])])
    at_poses = np.round(TIMES_S / HORIZON_S * 3000).astype(int)
    np.testing.assert_allclose(plan.speeds_mps, v[at_poses], atol=1e-9)
    driven = np.cumsum(plan.step_speeds_mps) * STEP_S
    np.testing.assert_allclose(driven, s[at_poses], atol=1e-3)
    length = np.hypot(*np.diff(plan.poses[:, :2], axis=0, prepend=np.zeros((1, 2))).T)
    assert (length <= np.abs(plan.step_speeds_mps) * STEP_S + 1e-9).all()
    if speed >= 0:
        fast = replace(config, max_deceleration_mps2=max(config.max_deceleration_mps2, braking_mps2))
        assert [check(plan, speed, fast) for check in CANDIDATE_CHECKS] == [None] * len(CANDIDATE_CHECKS)


def test_braking_holds_the_curvature_that_the_vehicle_is_on() -> None:
    plan = braking(replace(EGO, speed_mps=10.0, yaw_rate_radps=0.5), CONFIG)
    driven = np.cumsum(plan.step_speeds_mps) * STEP_S
    np.testing.assert_allclose(plan.poses, arc_pose(driven, 0.05 * driven))
    slow = braking(replace(EGO, speed_mps=0.3, yaw_rate_radps=0.3), CONFIG)
    assert not slow.poses[:, 1:].any(), "the curvature of a crawling vehicle is noise"


def test_a_chain_of_fallbacks_comes_to_a_stop_without_a_step() -> None:
    """A vehicle that follows each fallback for a tick of the guard's timer."""
    guard = Guard(CONFIG)
    now_ns, speed, tick_s = NOW_NS, 13.0, 0.1
    guard.poll(now_ns, replace(EGO, speed_mps=speed))
    speeds = []
    for _ in range(60):
        now_ns += round(tick_s * NS_PER_S)
        result = guard.poll(now_ns, replace(EGO, stamp_ns=now_ns, speed_mps=speed))
        if result is not None:
            assert result.source is Source.FALLBACK
            speed += (result.speeds_mps[0] - speed) / STEP_S * tick_s
            speeds.append(speed)
    assert all(b <= a for a, b in pairwise(speeds))
    assert max(a - b for a, b in pairwise(speeds)) <= CONFIG.braking_mps2 * tick_s + 1e-9
    assert speeds[-1] < 0.2


# --- whatever comes


def random_candidates(rng: np.random.Generator, speed: float) -> np.ndarray:
    """Motions from sensible to absurd, so that some pass and most do not."""
    made = []
    for _ in range(NUM_ANCHORS):
        poses = arc(
            max(speed + rng.normal(0, 2), 0.0), rng.normal(0, 0.1), rng.choice([-1, 1]) * rng.exponential(3)
        )
        noise = rng.choice([0.0, 0.03, 0.3, 3.0], p=[0.4, 0.3, 0.2, 0.1])
        poses += rng.normal(0, noise, poses.shape) * (1, 1, 0.3)
        made.append(poses)
    return np.array(made)


def check_limits(poses: np.ndarray, start_speed: float) -> None:
    """The limits by formulas of their own: lengths, circumscribed circles, farthest point back."""
    c = CONFIG
    points = np.concatenate([np.zeros((1, 2)), poses[:, :2]])
    steps = np.diff(points, axis=0)
    length = np.hypot(*steps.T)
    assert length.max() <= c.max_speed_mps * STEP_S + 1e-9
    noise = 2 * c.max_reverse_m  # a step back shortens nothing in this count
    assert abs(length[0] / STEP_S - start_speed) <= c.max_start_speed_error_mps + noise / STEP_S
    change = np.diff(length) / STEP_S**2
    assert change.max() <= c.max_acceleration_mps2 + noise / STEP_S**2
    assert change.min() >= -c.max_deceleration_mps2 - noise / STEP_S**2
    for a, b in pairwise(steps):
        la, lb = np.hypot(*a), np.hypot(*b)
        if min(la, lb) > 1.0 and max(la, lb) < 2 * min(la, lb):
            curvature = 2 * abs(a[0] * b[1] - a[1] * b[0]) / (la * lb * np.hypot(*(a + b)))
            mean_speed = (la + lb) / 2 / STEP_S
            assert curvature * mean_speed**2 <= 1.2 * c.max_lateral_acceleration_mps2
            assert curvature <= c.max_curvature_per_m * 1.1 + 2 * c.path_noise_m / min(la, lb) ** 2


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), speed=st.floats(0, 30))
def test_every_model_trajectory_obeys_the_limits(seed: int, speed: float) -> None:
    rng = np.random.default_rng(seed)
    command = Command(int(rng.integers(0, 4)))
    proposal = replace(
        PlanProposal.fake(T0_NS, speed),
        command=command,
        candidates=random_candidates(rng, speed),
        scores=rng.uniform(0, 1, NUM_ANCHORS),
        chosen=int(rng.integers(0, NUM_ANCHORS)),
    )
    result = propose(proposal, replace(EGO, speed_mps=speed))
    if result.source is Source.MODEL:
        check_limits(result.poses, speed)
        assert result.chosen // NUM_MODES == command.anchor_row
        np.testing.assert_array_equal(result.poses, proposal.candidates[result.chosen])
    change = np.diff(result.speeds_mps)
    a = result.accelerations_mps2
    if result.source is Source.MODEL:
        np.testing.assert_allclose(change, (a[1:] + a[:-1]) / 2 * STEP_S, atol=1e-9)


def test_the_property_above_sees_models_and_fallbacks() -> None:
    """Its control: the generator must reach both sides, often."""
    sources = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        proposal = replace(PlanProposal.fake(T0_NS, 8.0), candidates=random_candidates(rng, 8.0))
        sources.append(propose(proposal).source)
    single = [
        propose(
            replace(PlanProposal.fake(T0_NS), candidates=np.repeat(random_candidates(rng, 8.0)[:1], 18, 0))
        )
        for rng in map(np.random.default_rng, range(200))
    ]
    assert sources.count(Source.MODEL) > 100
    assert [result.source for result in single].count(Source.FALLBACK) > 50


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_garbage_never_gets_out(seed: int) -> None:
    """Numbers of any size with holes, any order of calls: answers are valid, finite and honest."""
    rng = np.random.default_rng(seed)
    guard, now_ns, newest_t0 = Guard(CONFIG), NOW_NS, 0
    for _ in range(20):
        now_ns += int(rng.integers(0, NS_PER_S // 2))
        ego = replace(
            EGO,
            stamp_ns=now_ns - int(rng.integers(0, NS_PER_S // 10)),
            speed_mps=float(rng.choice([8.0, 0.0, -3.0, np.nan, np.inf, 1e9])),
            yaw_rate_radps=float(rng.choice([0.0, 0.3, 50.0, np.nan])),
            motion_valid=bool(rng.random() > 0.1),
        )
        known = ego if rng.random() > 0.1 else None
        if rng.random() < 0.3:
            result = guard.poll(now_ns, known)
        else:
            candidates = rng.normal(0, 10.0 ** rng.integers(-3, 12), (18, 6, 3))
            candidates[rng.random(candidates.shape) < rng.choice([0, 0.1])] = rng.choice([np.nan, np.inf])
            proposal = replace(
                PlanProposal.fake(now_ns - int(rng.integers(-NS_PER_S // 5, NS_PER_S))),
                candidates=candidates.astype(rng.choice([np.float32, np.float64])),
                scores=rng.normal(0, 1, 18),
                chosen=int(rng.integers(-3, 30)),
                command=Command(int(rng.integers(0, 4))),
                status=PlanStatus(int(rng.integers(0, 2**15))),
            )
            result = guard.propose(proposal, known, now_ns)
        if result is None:
            continue
        result.validate()
        assert result.valid_until_ns > now_ns
        if result.source is Source.MODEL:
            assert result.t0_ns > newest_t0
            newest_t0 = result.t0_ns
            check_limits(result.poses, ego.speed_mps)
        else:
            assert result.reason
            assert result.status
            assert result.chosen == -1
            assert np.abs(result.speeds_mps).max() <= CONFIG.max_speed_mps


def test_equal_inputs_give_equal_answers() -> None:
    answers = [propose(replace(PlanProposal.fake(T0_NS), chosen=14)) for _ in range(2)]
    for name, value in vars(answers[0]).items():
        np.testing.assert_array_equal(value, getattr(answers[1], name))


def test_the_guard_imports_no_torch() -> None:
    code = "import sys, sparseoccvla.guard, sparseoccvla.odometry; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
