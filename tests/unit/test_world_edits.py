"""Edits: one thing changes, and everything else stays what it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.errors import InputError
from sparseoccvla.world import CameraImage, CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.edits import Edit, apply, edited_scene
from sparseoccvla.world.motion import matrices_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

SIZE_PX = (352, 198)
SECONDS = 7.0
HAZARD = "crossing-0"
TRUCK = "stopped_truck-0"
RIG = CameraRig.nuscenes_like()


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Noon without a cloud: shadows are hard."""
    return Scene.make(10, "rightville")


@pytest.fixture(scope="module")
def drive(scene) -> Drive:
    return rollout(scene, SECONDS)


@pytest.fixture(scope="module")
def truck_scene() -> Scene:
    return Scene.make(15, "leftville")


@pytest.fixture(scope="module")
def truck_drive(truck_scene) -> Drive:
    return rollout(truck_scene, SECONDS)


def stamp_of(drive: Drive, seconds: float) -> int:
    return int(drive.stamps_ns[0]) + round(seconds * NS_PER_S)


def pictures(scene: Scene, drive: Drive, stamp_ns: int) -> list[CameraImage]:
    renderer = Renderer(scene)
    return [renderer.render(drive, camera, stamp_ns + camera.offset_ns, SIZE_PX) for camera in RIG.cameras]


def names_in(image: CameraImage, drive: Drive) -> np.ndarray:
    """(H, W) names of the things in a picture, whatever their numbers are."""
    names = np.array(["", *drive.instances])
    return names[image.instance_ids]


def meets_box(image: CameraImage, drive: Drive, scene: Scene, names: list[str]) -> np.ndarray:
    """(H, W) whether the way from each pixel's point to the sun passes one of these things' boxes."""
    calibration = RIG[image.camera].calibration(SIZE_PX)
    v, u = np.mgrid[: SIZE_PX[1], : SIZE_PX[0]]
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(calibration.image_from_camera).T
    depth = np.where(np.isfinite(image.depth_m), image.depth_m, 0)[..., None]
    world_from_camera = drive.world_from_base(image.stamp_ns) @ calibration.base_from_camera
    points = (rays * depth) @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    poses = drive.agent_poses_at(image.stamp_ns)
    result = np.zeros(image.instance_ids.shape, bool)
    for thing, pose in zip(drive.agents, poses, strict=True):
        if thing.name not in names:
            continue
        world_from_thing = matrices_of(pose)
        # The shadow map's cells are 0.2 m wide, and it is read 0.3 m off the surface.
        half = np.array([thing.size_m[0] / 2, thing.size_m[1] / 2, thing.size_m[2]]) + 0.7
        start = (points - world_from_thing[:3, 3]) @ world_from_thing[:3, :3]
        way = scene.sky.sun_direction @ world_from_thing[:3, :3]
        with np.errstate(divide="ignore"):
            a, b = (-half - start) / way, (half - start) / way
        enter, leave = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
        result |= (enter <= leave) & (leave >= 0)
    return result & np.isfinite(image.depth_m)


def changed_colors(before: CameraImage, after: CameraImage) -> np.ndarray:
    """(H, W) where two pictures differ by more than rounding."""
    return (np.abs(before.rgb.astype(int) - after.rgb) > 1).any(axis=-1)


def unexplained(
    before: list[CameraImage], after: list[CameraImage], drive: Drive, scene: Scene, names: list[str]
) -> tuple[int, int]:
    """Pixels that changed though nothing of these things was there, and all that changed."""
    stray = changes = 0
    for old, new in zip(before, after, strict=True):
        changed = changed_colors(old, new)
        own = np.isin(names_in(old, drive), names)
        stray += int((changed & ~own & ~meets_box(old, drive, scene, names)).sum())
        changes += int(changed.sum())
    return stray, changes


def things_of(scene: Scene, hazard: str) -> list[str]:
    return [thing.name for h in scene.hazards if h.name == hazard for thing in h.things]


def test_removing_a_hazard_changes_only_its_pixels_and_its_shadow(scene, drive):
    edited, still = apply(scene, drive, Edit.parse(f"remove={HAZARD}"))
    names = things_of(scene, HAZARD)
    stamp = stamp_of(drive, 6.0)
    before, after = pictures(scene, drive, stamp), pictures(edited, still, stamp)
    stray, changes = unexplained(before, after, drive, scene, names)
    assert changes > 100, "it was in sight"
    assert stray == 0
    hidden = 0
    for old, new in zip(before, after, strict=True):
        was, now = names_in(old, drive), names_in(new, still)
        own = np.isin(was, names)
        hidden += int(own.sum())
        np.testing.assert_array_equal(was[~own], now[~own])
        np.testing.assert_array_equal(old.class_ids[~own], new.class_ids[~own])
        np.testing.assert_allclose(old.depth_m[~own], new.depth_m[~own], rtol=1e-5)
        assert (new.depth_m[own] >= old.depth_m[own]).all(), "only what it hid comes to light"
        assert not np.isin(now, names).any()
    assert hidden > 50
    shadow = sum(
        int((changed_colors(old, new) & ~np.isin(names_in(old, drive), names)).sum())
        for old, new in zip(before, after, strict=True)
    )
    assert shadow > 0, "the shadow is gone too"

    # The check would notice a car that was moved a little, or another thing that is gone.
    nudged = drive.agent_poses.copy()
    nudged[:, -1, :2] = drive.ego[:, :2] + [9.0, 3.0]
    moved = pictures(scene, replace(drive, agent_poses=nudged), stamp)
    assert unexplained(before, moved, drive, scene, names)[0] > 0


def test_a_removed_hazard_is_gone_from_boxes_and_motion_and_all_else_stays_bit_for_bit(scene, drive):
    edited, still = apply(scene, drive, Edit.parse(f"remove={HAZARD}"))
    names = things_of(scene, HAZARD)
    np.testing.assert_array_equal(still.ego, drive.ego)
    for seconds in (0.0, 3.1, 6.0):
        old = {box.name: box for box in drive.boxes_at(stamp_of(drive, seconds))}
        new = {box.name: box for box in still.boxes_at(stamp_of(drive, seconds))}
        assert set(old) - set(new) == set(names)
        assert set(new) <= set(old)
        for name, box in new.items():
            np.testing.assert_array_equal(box.world_from_box, old[name].world_from_box)
            assert (box.size_m, box.label, box.color) == (
                old[name].size_m,
                old[name].label,
                old[name].color,
            )
    assert [e.name for e in still.events] == [e.name for e in drive.events if e.name != HAZARD]
    assert not things_of(edited, HAZARD)


def differs_mps2(one: Drive, other: Drive) -> np.ndarray:
    lateral = one.speed_mps * one.yaw_rate_radps - other.speed_mps * other.yaw_rate_radps
    return np.hypot(one.acceleration_mps2 - other.acceleration_mps2, lateral)


def test_without_its_hazard_the_expert_drives_on_but_not_before_it_would_have_reacted(
    truck_scene, truck_drive
):
    [event] = truck_drive.events
    free = rollout(edited_scene(truck_scene, Edit.parse(f"remove={event.name}")), SECONDS)
    react = int(np.searchsorted(truck_drive.stamps_ns, event.react_ns))
    assert 0 < react < len(truck_drive.stamps_ns)
    apart = differs_mps2(truck_drive, free)
    assert apart[:react].max() < 0.5
    assert apart[react:].max() > 0.5, "the control: later they do differ"
    assert truck_drive.speed_mps[-1] < 5 < 7 < free.speed_mps[-1]


@pytest.mark.parametrize("text", ["colors=77", "weather=overcast", "hour=evening"])
def test_irrelevant_edits_change_colors_and_nothing_else(scene, drive, text):
    edited, still = apply(scene, drive, Edit.parse(text))
    stamp = stamp_of(drive, 2.0)
    for old, new in zip(pictures(scene, drive, stamp), pictures(edited, still, stamp), strict=True):
        np.testing.assert_array_equal(old.class_ids, new.class_ids)
        np.testing.assert_array_equal(old.depth_m, new.depth_m)
        np.testing.assert_array_equal(old.instance_ids, new.instance_ids)
        assert changed_colors(old, new).mean() > 0.01
    for field in ("ego", "agent_poses", "agent_signals", "speed_mps"):
        np.testing.assert_array_equal(getattr(still, field), getattr(drive, field))
    for old, new in zip(drive.boxes_at(stamp), still.boxes_at(stamp), strict=True):
        np.testing.assert_array_equal(old.world_from_box, new.world_from_box)
        assert (old.name, old.label, old.size_m) == (new.name, new.label, new.size_m)
    again = rollout(edited, 3.0)
    np.testing.assert_allclose(again.ego, drive.ego[: len(again.ego)], atol=1e-12)


def test_an_edit_of_nothing_would_fail_the_color_check(scene, drive):
    edited, still = apply(scene, drive, Edit.parse(f"weather={scene.sky.weather}"))
    stamp = stamp_of(drive, 2.0)
    for old, new in zip(pictures(scene, drive, stamp), pictures(edited, still, stamp), strict=True):
        assert not changed_colors(old, new).any()


def test_an_added_hazard_is_there_and_what_was_there_stays(truck_scene, truck_drive):
    free = Scene.make(truck_scene.seed, truck_scene.city.name, remove=[TRUCK])
    drive = rollout(free, SECONDS)
    edited, still = apply(free, drive, Edit.parse(f"add={TRUCK}"))
    new = things_of(edited, TRUCK)
    assert {thing.name for thing in edited.agents} - {thing.name for thing in free.agents} == set(new)
    np.testing.assert_array_equal(still.ego, drive.ego)
    for column, thing in enumerate(drive.agents):
        at = [thing.name for thing in still.agents].index(thing.name)
        np.testing.assert_array_equal(still.agent_poses[:, at], drive.agent_poses[:, column])
    stamp = stamp_of(drive, 2.0)
    seen = [names_in(image, still) for image in pictures(edited, still, stamp)]
    assert sum(int(np.isin(names, new).sum()) for names in seen) > 50
    # Taken away again, it is the scene it was; and the expert sees what was there from the start.
    back, then = apply(edited, still, Edit.parse(f"remove={TRUCK}"))
    for old, again in zip(pictures(free, drive, stamp), pictures(back, then, stamp), strict=True):
        np.testing.assert_array_equal(old.rgb, again.rgb)
    np.testing.assert_allclose(rollout(edited, SECONDS).ego, truck_drive.ego, atol=1e-9)


def test_a_calmed_lead_stays_and_does_not_brake():
    scene = Scene.make(10, "leftville")
    drive = rollout(scene, 4.0)
    [hazard] = [hazard for hazard in scene.hazards if hazard.name == "lead_brake-0"]
    edit = Edit.without(hazard)
    assert edit.name == "calm-lead_brake-0"
    _, still = apply(scene, drive, edit)
    lead = [thing.name for thing in still.agents].index(hazard.things[0].name)
    hard = drive.agent_accelerations_mps2[:, lead].min()
    assert hard < -2.5 < -1.0 < still.agent_accelerations_mps2[:, lead].min()
    others = np.arange(len(drive.agents)) != lead
    np.testing.assert_array_equal(still.agent_poses[:, others], drive.agent_poses[:, others])
    np.testing.assert_array_equal(still.ego, drive.ego)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("remove=elk-0", "takes no part"),
        ("add=elk-0", "not possible"),
        ("add=crossing-0", "already"),
        ("calm=crossing-0", "no lead vehicle"),
        ("weather=hail", "wanted one of clear"),
        ("hour=dawn", "wanted one of morning"),
        ("colors=red", "seed"),
        ("paint=3", "KIND=VALUE"),
        ("remove=", "KIND=VALUE"),
    ],
)
def test_an_impossible_edit_is_refused_in_words(scene, text, says):
    with pytest.raises(InputError, match=says):
        edited_scene(scene, Edit.parse(text))
