"""Labels say what is there, and what cameras and lidar see: held against every triangle of the scene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparseoccvla.contracts import FREE_CLASS, MOVABLE_CLASSES, OCC3D_GRID
from sparseoccvla.data.occ3d import OccupancyLabel
from sparseoccvla.geometry import inverse, planar_matrix, transform
from sparseoccvla.world import CameraImage, CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.caster import Lens
from sparseoccvla.world.labels import Labeler, OccupancyTruth
from sparseoccvla.world.lidar import BASE_FROM_LIDAR, Panorama
from sparseoccvla.world.visibility import Onlooker, lidar_points_in, visibility_level

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIZE_PX = (352, 128)
VOXEL_M = OCC3D_GRID.voxel_size_m
Array = NDArray[np.float64]
both_cities = pytest.mark.parametrize(("seed", "city"), [(3, "rightville"), (5, "leftville")])


@dataclass(frozen=True)
class Moment:
    """A keyframe whose cameras all fire at its time, so that nothing moves between them."""

    scene: Scene
    drive: Drive
    stamp_ns: int
    rig: CameraRig
    images: dict[str, CameraImage]
    labeler: Labeler
    panorama: Panorama
    truth: OccupancyTruth
    triangles_base_m: Array  # (T, 3, 3) of the whole scene, near the grid

    @property
    def label(self) -> OccupancyLabel:
        return OccupancyLabel(self.truth.semantics, self.truth.mask_camera, self.truth.mask_lidar)

    def with_cameras_swapped(self) -> OccupancyLabel:
        front, back = self.images["cam_front"], self.images["cam_back"]
        wrong = {
            "cam_front": replace(back, camera="cam_front"),
            "cam_back": replace(front, camera="cam_back"),
        }
        truth = self.labeler.occupancy(self.drive, self.stamp_ns, {**self.images, **wrong}, self.panorama)
        return OccupancyLabel(truth.semantics, truth.mask_camera, truth.mask_lidar)

    def wrong_labels(self) -> dict[str, OccupancyLabel]:
        shifted = (np.roll(grid, 1, axis=2) for grid in vars(self.label).values())
        return {
            "turned by 5 degrees": self.label.moved(planar_matrix(0, 0, np.deg2rad(5))),
            "a voxel too high": OccupancyLabel(*shifted),
            "two cameras swapped": self.with_cameras_swapped(),
        }


@cache
def moment(seed: int, city: str) -> Moment:
    scene = Scene.make(seed, city)
    drive = rollout(scene, 2.0)
    stamp_ns = int(drive.stamps_ns[30])
    rig = CameraRig(tuple(replace(c, offset_ns=0) for c in CameraRig.nuscenes_like().cameras))
    renderer = Renderer(scene)
    images = {c.name: renderer.render(drive, c, stamp_ns, SIZE_PX) for c in rig.cameras}
    labeler = Labeler(scene, rig)
    panorama = labeler.lidar.turn(drive, stamp_ns)
    truth = labeler.occupancy(drive, stamp_ns, images, panorama)
    stage = scene.stage
    faces = stage.static.join(stage.moving(drive.look_at(stamp_ns))).vertices_m.double().numpy()
    faces = transform(inverse(drive.world_from_base(stamp_ns)), faces)
    faces = faces[np.abs(faces[..., :2]).min(axis=(1, 2)) < 60]
    triangles = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
    return Moment(scene, drive, stamp_ns, rig, images, labeler, panorama, truth, triangles)


def reached(origin_m: Array, targets_m: Array, triangles_m: Array) -> NDArray[np.bool_]:
    """Whether nothing lies before targets (N, 3), by Moeller and Trumbore's test with triangles (T, 3, 3)."""
    a, ab, ac = (
        triangles_m[:, 0],
        triangles_m[:, 1] - triangles_m[:, 0],
        triangles_m[:, 2] - triangles_m[:, 0],
    )
    normal = np.cross(ab, ac)
    turned = ((origin_m - a) * normal).sum(axis=1) > 1e-9
    a, ab, ac, normal = a[turned], ab[turned], ac[turned], normal[turned]
    away = origin_m - a
    level, across, up = (away * normal).sum(axis=1), np.cross(away, ac), np.cross(ab, away)
    clear = []
    for direction in np.array_split(targets_m - origin_m, len(targets_m) // 32 + 1):
        # Each is (rays, triangles), times the slope of the ray toward the triangle.
        slope, u, v = (-direction @ forms.T for forms in (normal, across, up))
        before = (slope > 0) & (level < slope * (1 - 2e-3)) & (u >= 0) & (v >= 0) & (u + v <= slope)
        clear.append(~before.any(axis=1))
    return np.concatenate(clear)


def surface_in(
    cell: NDArray[np.int64], triangles_m: Array, shrink_m: float, rng: np.random.Generator
) -> Array:
    """Points (N, 3) all over the parts of triangles in a cell (3,) whose sides are moved in by `shrink_m`."""
    center, half = OCC3D_GRID.centers_m(cell).astype(float), VOXEL_M / 2 - shrink_m
    low, high = triangles_m.min(axis=1), triangles_m.max(axis=1)
    points = [np.zeros((0, 3))]
    for a, b, c in triangles_m[((low <= center + half) & (high >= center - half)).all(axis=1)]:
        normal = np.cross(b - a, c - a)
        square = normal @ normal
        if square < 1e-18:
            continue
        around = center + rng.uniform(-VOXEL_M, VOXEL_M, (300, 3))
        onto = around - np.outer((around - a) @ normal, normal) / square
        u, v = np.cross(onto - a, c - a) @ normal / square, np.cross(b - a, onto - a) @ normal / square
        inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (np.abs(onto - center) <= half).all(axis=1)
        points.append(onto[inside])
    return rng.permutation(np.concatenate(points))


def in_picture(m: Moment, camera: str, points_m: Array) -> NDArray[np.bool_]:
    """(N,) whether points of base_link are in a picture, a pixel away from its border."""
    calibration = m.rig[camera].calibration(SIZE_PX)
    seen = transform(inverse(calibration.base_from_camera), points_m) @ calibration.image_from_camera.T
    uv = seen[:, :2] / np.maximum(seen[:, 2:], 1e-6)
    return (seen[:, 2] > 0.5) & (uv > 1).all(axis=1) & (uv < np.array(SIZE_PX) - 2).all(axis=1)


@cache
def really_seen(seed: int, city: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cells (N, 3) in pictures, as many occupied as free and in the mask as not, and which are seen."""
    m, rng = moment(seed, city), np.random.default_rng(0)
    cells, seen = [], []
    for occupied in (True, False):
        for masked in (True, False):
            candidates = np.argwhere(
                ((m.truth.semantics != FREE_CLASS) == occupied) & (m.truth.mask_camera == masked)
            )
            for cell in rng.permutation(candidates)[:60]:
                targets = OCC3D_GRID.centers_m(cell[None]).astype(float)
                if occupied:
                    targets = surface_in(cell, m.triangles_base_m, 0, rng)[:10]
                views = [(camera, in_picture(m, camera.name, targets)) for camera in m.rig.cameras]
                if any(view.any() for _, view in views):
                    cells.append(cell)
                    seen.append(
                        any(
                            reached(camera.base_from_camera[:3, 3], targets[view], m.triangles_base_m).any()
                            for camera, view in views
                            if view.any()
                        )
                    )
    return np.array(cells), np.array(seen)


def gaps_m(m: Moment, label: OccupancyLabel, count: int) -> Array:
    """How far from random seen, occupied voxels a camera that zooms in on them meets a surface."""
    rng = np.random.default_rng(0)
    moving = m.scene.stage.moving(m.drive.look_at(m.stamp_ns))
    world_from_base = m.drive.world_from_base(m.stamp_ns)
    candidates = rng.permutation(np.argwhere((label.semantics != FREE_CLASS) & label.camera_mask))
    gaps = []
    for cell in candidates[:count]:
        center = OCC3D_GRID.centers_m(cell).astype(float)
        nearest = np.inf
        for camera in m.rig.cameras:
            corners = center + VOXEL_M / 2 * np.array(list(product((-1, 0, 1), repeat=3)))
            if not in_picture(m, camera.name, corners).any():
                continue
            origin = camera.base_from_camera[:3, 3]
            forward = (center - origin) / np.linalg.norm(center - origin)
            right = np.cross(forward, [0, 0, 1.0])
            right /= np.linalg.norm(right)
            eye = np.eye(4)
            eye[:3] = np.stack([right, np.cross(forward, right), forward, origin], axis=1)
            focal = 24 * np.linalg.norm(center - origin) / 0.4
            lens = Lens(focal, focal, 23.5, 23.5, 48, 48)
            hits, _ = m.scene.stage.cast(torch.from_numpy(world_from_base @ eye).float(), lens, moving)
            v, u = np.nonzero(hits.face.numpy() >= 0)
            depth = 1 / hits.inverse_depth.double().numpy()[v, u]
            rays = np.stack([(u - 23.5) / focal, (v - 23.5) / focal, np.ones(len(u))], axis=1)
            beyond = np.abs(transform(eye, rays * depth[:, None]) - center) - VOXEL_M / 2
            nearest = min(nearest, np.linalg.norm(np.maximum(beyond, 0), axis=1).min(initial=1e3))
        if np.isfinite(nearest):
            gaps.append(nearest)
    return np.array(gaps)


@pytest.mark.slow
@both_cities
def test_the_depth_of_a_ray_meets_every_seen_voxel(seed, city):
    m = moment(seed, city)
    gaps = gaps_m(m, m.label, 150)
    # What is behind an edge by less than a pixel of the small pictures may count as seen.
    assert (gaps <= VOXEL_M).mean() > 0.98
    assert (gaps < 0.02).mean() > 0.96
    for name, label in m.wrong_labels().items():
        wrong = gaps_m(m, label, 60)
        assert (wrong <= VOXEL_M).mean() < 0.9, name
        assert (wrong < 0.02).mean() < 0.85, name


@pytest.mark.slow
@both_cities
def test_the_camera_mask_is_what_cameras_can_see(seed, city):
    m = moment(seed, city)
    cells, seen = really_seen(seed, city)
    assert min(seen.sum(), (~seen).sum()) > 50

    def agreement(label: OccupancyLabel) -> float:
        return float((label.camera_mask[tuple(cells.T)] == seen).mean())

    assert agreement(m.label) > 0.96
    for name, label in m.wrong_labels().items():
        assert agreement(label) < 0.92, name


@pytest.mark.slow
@both_cities
def test_voxels_are_occupied_where_surfaces_are(seed, city):
    m, rng = moment(seed, city), np.random.default_rng(1)
    occupied = rng.permutation(np.argwhere(m.truth.semantics != FREE_CLASS))[:80]
    assert all(len(surface_in(cell, m.triangles_base_m, -0.01, rng)) for cell in occupied)
    # Slivers near the border of a voxel may be missed, and there is no ground under houses.
    free = m.truth.semantics == FREE_CLASS
    beside = np.argwhere(free & (np.roll(free, 1, axis=2) == 0) | free & (np.roll(free, 1, axis=0) == 0))
    empty = [
        len(surface_in(cell, m.triangles_base_m, 0.12, rng)) == 0 for cell in rng.permutation(beside)[:80]
    ]
    assert np.mean(empty) > 0.98


@pytest.mark.slow
@both_cities
def test_the_ground_is_labeled_as_it_is_painted(seed, city):
    """Pixels of the pictures fall into voxels of their class, except where two classes meet."""
    m = moment(seed, city)
    agree, total = 0, 0
    for image in m.images.values():
        calibration = m.rig[image.camera].calibration(SIZE_PX)
        v, u = np.nonzero(image.depth_m < 40)
        rays = np.stack([u, v, np.ones(len(u))], axis=1) @ np.linalg.inv(calibration.image_from_camera).T
        points = transform(calibration.base_from_camera, rays * image.depth_m[v, u, None])
        index, inside = OCC3D_GRID.indices(points)
        label = m.truth.semantics[tuple(index[inside].T)]
        agree += (label == image.class_ids[v, u][inside]).sum()
        total += inside.sum()
    assert agree / total > 0.93
    # A label that lies a voxel to the side would not pass.
    assert np.mean(np.roll(m.truth.semantics, 3, axis=1)[tuple(index[inside].T)] == label) < 0.93


@pytest.mark.slow
def test_lidar_points_lie_on_what_stands_there():
    m, rng = moment(3, "rightville"), np.random.default_rng(0)
    points = transform(BASE_FROM_LIDAR, m.panorama.points[:, :3].astype(float))
    assert 15_000 < len(points) < 34_560
    origin = BASE_FROM_LIDAR[:3, 3]
    near = points[np.linalg.norm(points - origin, axis=1) < 50]
    some = rng.permutation(near)[:200]
    assert reached(origin, some, m.triangles_base_m).mean() > 0.99
    assert not reached(origin, origin + 1.05 * (some - origin), m.triangles_base_m).any()
    rings = m.panorama.points[:, 4]
    elevation = np.rad2deg(np.arcsin((points - origin)[:, 2] / np.linalg.norm(points - origin, axis=1)))
    np.testing.assert_allclose(elevation, -30.67 + rings * 41.34 / 31, atol=0.01)
    index, inside = OCC3D_GRID.indices(near)
    met = tuple(index[inside].T)
    assert (m.truth.semantics[met] != FREE_CLASS).mean() > 0.97
    assert m.truth.mask_lidar[met].mean() > 0.97
    assert m.truth.mask_lidar[np.roll(m.truth.mask_lidar, 20, axis=0)].mean() < 0.97


@pytest.mark.slow
def test_points_in_boxes_are_those_of_their_things():
    m = moment(3, "rightville")
    world_from_base = m.drive.world_from_base(m.stamp_ns)
    boxes = m.drive.boxes_at(m.stamp_ns)
    counts = lidar_points_in(boxes, m.panorama.points, world_from_base)
    world = transform(world_from_base @ BASE_FROM_LIDAR, m.panorama.points[:, :3].astype(float))
    for box, count in zip(boxes, counts, strict=True):
        inside = np.abs(transform(inverse(box.world_from_box), world)) <= np.array(box.size_m)[[1, 0, 2]] / 2
        assert count == inside.all(axis=1).sum()
    assert counts.max() > 50


@pytest.mark.slow
def test_visibility_is_the_share_of_pixels_that_is_left():
    m = moment(3, "rightville")
    onlooker = Onlooker(m.drive, m.scene.stage, m.rig)
    shares = onlooker.shares(m.images.values())
    assert np.nanmax(shares) == 1
    assert (shares < 0.4).any(), "something is hidden"
    whole = int(np.nanargmax(np.where(shares == 1, np.bincount(_instances(m), minlength=len(shares)), 0)))
    rng = np.random.default_rng(0)

    def hide(image: CameraImage) -> CameraImage:
        hidden = (image.instance_ids == whole) & (rng.random(image.instance_ids.shape) < 0.5)
        return replace(image, instance_ids=np.where(hidden, 0, image.instance_ids))

    halved = onlooker.shares([hide(image) for image in m.images.values()])
    assert halved[whole] == pytest.approx(0.5, abs=0.1)
    kept = np.arange(len(shares)) != whole
    np.testing.assert_array_equal(halved[kept], shares[kept])


def _instances(m: Moment) -> NDArray[np.int32]:
    annotated = np.isin(np.arange(len(m.drive.instances) + 1), [b.instance for b in m.drive.boxes_at(0)])
    seen = np.concatenate([image.instance_ids.ravel() for image in m.images.values()])
    return seen[annotated[seen]]


@pytest.mark.parametrize(
    ("share", "level"),
    [
        (0.0, "1"),
        (0.39, "1"),
        (0.4, "2"),
        (0.6, "3"),
        (0.79, "3"),
        (0.8, "4"),
        (1.0, "4"),
        (float("nan"), "1"),
    ],
)
def test_visibility_levels_are_those_of_nuscenes(share, level):
    assert visibility_level(share) == level


@pytest.mark.slow
def test_labels_of_a_removed_thing_vanish_and_nothing_else_changes():
    m = moment(3, "rightville")
    drive, labeler = m.drive, m.labeler
    boxes = {box.name: box for box in drive.boxes_at(m.stamp_ns)}
    base_from_world = inverse(drive.world_from_base(m.stamp_ns))
    center = {name: transform(base_from_world, box.center_m) for name, box in boxes.items()}
    agents = [thing.name for thing in drive.agents if np.abs(center[thing.name][:2]).max() < 36]
    name = max(agents, key=lambda name: np.prod(boxes[name].size_m))
    gone = int(np.flatnonzero([thing.name == name for thing in drive.agents])[0])
    poses = drive.agent_poses.copy()
    poses[:, gone, 2] = -500.0
    emptied = replace(drive, agent_poses=poses)
    truth = labeler.occupancy(emptied, m.stamp_ns, m.images)
    changed = np.argwhere(truth.semantics != m.truth.semantics)
    assert len(changed) > 5
    assert set(m.truth.semantics[tuple(changed.T)]) == {boxes[name].label}
    local = transform(
        inverse(boxes[name].world_from_box) @ inverse(base_from_world), OCC3D_GRID.centers_m(changed)
    )
    assert (np.abs(local) <= np.array(boxes[name].size_m)[[1, 0, 2]] / 2 + VOXEL_M).all()
    assert set(np.unique(truth.semantics[tuple(changed.T)])).isdisjoint(MOVABLE_CLASSES)


@pytest.mark.slow
def test_equal_scenes_get_equal_labels():
    m = moment(3, "rightville")
    again = Labeler(Scene.make(3, "rightville"), m.rig).occupancy(m.drive, m.stamp_ns, m.images)
    for name, grid in vars(m.truth).items():
        np.testing.assert_array_equal(getattr(again, name), grid, err_msg=name)
    later = m.labeler.occupancy(m.drive, m.stamp_ns + 500_000_000, m.images)
    assert (later.semantics != m.truth.semantics).any()


@pytest.mark.slow
def test_two_moments_show_all_classes():
    found: set[int] = set()
    for seed, city, second in ((5500, "leftville", 3.5), (2023, "rightville", 0.5)):
        scene = Scene.make(seed, city)
        drive = rollout(scene, second + 0.2)
        stamp_ns = int(drive.stamps_ns[round(second / 0.05)])
        rig, renderer = CameraRig.nuscenes_like(), Renderer(scene)
        images = {c.name: renderer.render(drive, c, stamp_ns + c.offset_ns, (32, 18)) for c in rig.cameras}
        found |= set(np.unique(Labeler(scene, rig).occupancy(drive, stamp_ns, images).semantics).tolist())
    assert found == set(range(FREE_CLASS + 1))
