"""Closed loop: plans are driven, agents react, and what happens is told."""

from __future__ import annotations

import numpy as np
import pytest

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, NUM_STEPS, STEP_S, Command, ContractError
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse, planar_pose
from sparseoccvla.world import CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.edits import Edit
from sparseoccvla.world.effects import CameraEffects
from sparseoccvla.world.simulate import MAX_BRAKING_MPS2
from sparseoccvla.world.world import Observation, Outcome, World, future_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

SIZE_PX = (64, 36)
TRUCK = (15, "leftville")  # a truck stands in the lane
STANDING = np.zeros((NUM_STEPS, 3))


@pytest.fixture
def world() -> World:
    return World(SIZE_PX)


def on_the_way(world: World, speed_mps: float) -> np.ndarray:
    """A plan along the route at a constant speed, whatever is there."""
    sim = world.sim
    station, _, _ = sim.ego_lane.locate(sim.ego_pose[None])
    stations = float(station[0]) + speed_mps * STEP_S * np.arange(1, NUM_STEPS + 1)
    x, y, yaw = world.scene.ego_path.at(stations).T
    x0, y0, yaw0 = sim.ego_pose
    c, s = np.cos(yaw0), np.sin(yaw0)
    return np.stack([c * (x - x0) + s * (y - y0), -s * (x - x0) + c * (y - y0), yaw - yaw0], axis=1)


def drive_on(world: World, speed_mps: float, steps: int) -> list[Outcome]:
    outcomes = []
    for _ in range(steps):
        outcomes.append(world.step(on_the_way(world, speed_mps)))
        if outcomes[-1].done:
            break
    return outcomes


@pytest.mark.parametrize(("seed", "city"), [(12, "leftville"), (1, "rightville")])
def test_the_experts_own_future_is_driven_as_the_expert_did(world, seed, city):
    """Open loop: each plan is where the expert went from its own place, so that errors would add up."""
    expert = rollout(Scene.make(seed, city), 12.0)
    world.reset(seed, city)
    while world.sim.t_s < 8.0:
        assert not world.step(future_of(expert, world.t0_ns)).done
    count = len(world.drive.ego)
    apart = np.linalg.norm(world.drive.ego[:, :2] - expert.ego[:count, :2], axis=1)
    assert apart.max() < 0.3
    # The control: somebody who just keeps the speed ends elsewhere.
    world.reset(seed, city)
    drive_on(world, world.sim.ego_v, 12)
    count = len(world.drive.ego)
    assert np.linalg.norm(world.drive.ego[:, :2] - expert.ego[:count, :2], axis=1).max() > 1.0


def test_a_shaky_plan_is_driven_calmly(world):
    rng = np.random.default_rng(0)
    world.reset(1, "rightville")
    for _ in range(10):
        shaky = world.expert_plan() + rng.normal(0, [0.1, 0.1, 0.02], (NUM_STEPS, 3))
        outcome = world.step(shaky)
        assert not outcome.done
        assert outcome.off_route_m < 0.6
        assert outcome.comfort.lateral_mps2 < 4


def test_who_never_brakes_hits_the_truck_and_who_looks_does_not(world):
    world.reset(*TRUCK)
    outcomes = drive_on(world, 10.0, 30)
    hit = outcomes[-1].collision
    assert outcomes[-1].reason == "collision"
    assert hit is not None
    assert hit.name == "stopped_truck-0-truck"
    assert (hit.where, hit.at_fault) == ("front", True)
    assert hit.ego_speed_mps > 5
    assert any("stopped_truck-0" in outcome.hazards_met for outcome in outcomes)

    world.reset(*TRUCK)
    reasons = [world.step_expert().reason for _ in range(20)]
    assert not any(reasons)

    world.reset(*TRUCK, edit=Edit.parse("remove=stopped_truck-0"))
    outcomes = drive_on(world, 10.0, 10)
    assert not any(outcome.collision for outcome in outcomes)


def behind_the_ego(world: World) -> int:
    """The agent that follows the ego in its lane."""
    route = [i for i, plan in enumerate(world.scene.plans) if plan.path is world.scene.ego_path]
    [follower] = [i for i in route if world.sim.s[i] < world.scene.ego.start_m]
    return follower


def test_who_drives_behind_brakes_for_an_ego_that_stands(world):
    world.reset(0, "rightville", warmup_s=0.1, limit_s=30.0)
    follower = behind_the_ego(world)
    assert world.sim.v[follower] > 5
    outcomes = [world.step(STANDING) for _ in range(24)]
    assert not any(outcome.collision for outcome in outcomes)
    assert world.sim.ego_v < 1e-3
    assert world.sim.v[follower] < 0.5
    gap = np.linalg.norm(world.sim.poses[follower, :2] - world.sim.ego_box[:2])
    assert 3.0 < gap < 15.0
    # The control: with the ego on its way the same one drives on.
    world.reset(0, "rightville", warmup_s=0.1, limit_s=30.0)
    drive_on(world, 9.0, 8)
    assert world.sim.v[follower] > 5


def test_a_plan_that_leaves_the_road_ends_the_drive(world):
    world.reset(1, "rightville")
    t = STEP_S * np.arange(1, NUM_STEPS + 1)
    aside = np.stack([8 * t, -2.5 * t, np.full_like(t, -0.3)], axis=1)
    for _ in range(12):
        outcome = world.step(aside)
        if outcome.done:
            break
    assert outcome.reason in ("off road", "collision")
    assert outcome.off_road_m > 0 or outcome.collision
    world.reset(1, "rightville")
    assert drive_on(world, 8.0, 4)[-1].off_road_m == 0


def test_no_plan_asks_more_of_the_vehicle_than_it_can(world):
    world.reset(1, "rightville")
    t = STEP_S * np.arange(1, NUM_STEPS + 1)
    wild = np.stack([40 * t, np.zeros_like(t), np.zeros_like(t)], axis=1)
    outcome = world.step(wild)
    assert outcome.comfort.acceleration_mps2 <= 3.01
    outcome = world.step(STANDING)
    assert 2.0 < outcome.comfort.braking_mps2 <= MAX_BRAKING_MPS2 + 0.01
    assert outcome.comfort.jerk_mps3 <= 10.01
    assert world.sim.frames[-1].ego_v >= 0


def test_equal_calls_give_equal_drives(world):
    def end(speed_mps: float) -> Drive:
        world.reset(2, "leftville")
        drive_on(world, speed_mps, 6)
        return world.drive

    first, again, other = end(7.0), end(7.0), end(6.0)
    np.testing.assert_allclose(first.ego, again.ego, atol=1e-12)
    np.testing.assert_allclose(first.agent_poses, again.agent_poses, atol=1e-12)
    assert np.abs(first.ego - other.ego).max() > 0.1


def test_what_is_observed_are_the_pictures_of_the_drive(world):
    scene = Scene.make(1, "rightville")
    drive, renderer, rig = rollout(scene, 4.0), Renderer(scene), CameraRig.nuscenes_like()
    seen = world.reset(1, "rightville")
    assert tuple(seen.images) == CAMERA_NAMES
    assert seen.t0_ns == seen.now_ns + rig["cam_front"].offset_ns
    for row, camera in enumerate(rig.cameras):
        image = renderer.render(drive, camera, seen.now_ns + camera.offset_ns, SIZE_PX)
        np.testing.assert_array_equal(image.rgb, seen.images[camera.name].rgb)
        np.testing.assert_array_equal(image.rgb, seen.inputs.images_rgb[row])
        late = renderer.render(drive, camera, seen.now_ns + NS_PER_S, SIZE_PX)
        assert not np.array_equal(late.rgb, image.rgb)
    assert seen.ego.motion_valid
    assert seen.ego.past_valid.all()
    assert seen.ego.speed_mps == pytest.approx(drive.ego_at(seen.t0_ns).speed_mps, abs=0.02)
    then = drive.world_from_base(seen.t0_ns - NS_PER_S)
    past = planar_pose(inverse(drive.world_from_base(seen.t0_ns)) @ then)
    np.testing.assert_allclose(seen.ego.past_poses[1], past, atol=0.01)
    assert seen.command.command is Command(int(drive.command_at(seen.t0_ns)))
    assert seen.command.source == "route"


def projected(seen: Observation, name: str, u: int, v: int) -> np.ndarray:
    """Pixel and depth of a pixel's point that went through odom and back."""
    camera, image = seen.cameras[name], seen.images[name]
    row = list(seen.cameras).index(name)
    ray = np.linalg.inv(camera.image_from_camera) @ [u, v, 1.0]
    point_base = camera.base_from_camera @ np.append(ray * float(image.depth_m[v, u]), 1)
    # In base_link at t0 instead of at the picture's stamp: the ego moves 10 m/s at most.
    uvd = seen.inputs.image_from_odom[row] @ seen.inputs.odom_from_base @ point_base
    return np.array([uvd[0] / uvd[2], uvd[1] / uvd[2], uvd[2]])


def test_pictures_come_with_the_projection_that_belongs_to_them(world):
    seen = world.reset(1, "rightville").inputs.validate() and world.observe()
    v = SIZE_PX[1] - 6
    for name in ("cam_front", "cam_back_left"):
        depth = float(seen.images[name].depth_m[v, 30])
        u_px, v_px, deep = projected(seen, name, 30, v)
        assert abs(deep - depth) < 0.6
        assert abs(v_px - v) < 3
        assert abs(u_px - 30) < 6


def test_the_past_can_be_observed_and_the_future_not(world):
    seen = world.reset(1, "rightville")
    before = world.observe(seen.now_ns - NS_PER_S // 2)
    assert before.now_ns == seen.now_ns - NS_PER_S // 2
    with pytest.raises(InputError, match="so far"):
        world.observe(seen.now_ns + 1)


def test_a_lost_picture_is_masked(world):
    world.effects = CameraEffects(dropped=0.5)
    seen = world.reset(1, "rightville")
    present = [name in seen.images for name in CAMERA_NAMES]
    assert 0 < sum(present) < len(present)
    np.testing.assert_array_equal(seen.inputs.valid, present)
    assert not seen.inputs.images_rgb[~seen.inputs.valid].any()
    seen.inputs.validate()


def test_the_experts_plan_is_what_the_expert_then_does(world):
    world.reset(2, "leftville")
    plan = world.expert_plan()
    t0_ns, before = world.t0_ns, len(world.sim.frames)
    for _ in range(6):
        world.step_expert()
    assert len(world.sim.frames) == before + 60
    np.testing.assert_allclose(plan, future_of(world.drive, t0_ns), atol=1e-9)


def test_the_drive_ends_in_time(world):
    world.reset(1, "rightville", limit_s=3.1)
    assert [world.step_expert().reason for _ in range(2)] == ["", "time"]


def test_impossible_calls_are_refused_in_words(world):
    with pytest.raises(InputError, match="call reset first"):
        world.step(STANDING)
    world.reset(1, "rightville")
    with pytest.raises(InputError, match=r"multiple of 0\.05"):
        world.step(STANDING, 0.07)
    with pytest.raises(ContractError, match="trajectory has shape"):
        world.step(np.zeros((4, 3)))
    with pytest.raises(ContractError, match="not finite"):
        world.step(np.full((NUM_STEPS, 3), np.nan))
