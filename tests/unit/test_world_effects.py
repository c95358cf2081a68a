"""Camera effects: off they change no bit, on they do what they say and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.contracts import CAMERA_NAMES
from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse
from sparseoccvla.world import CameraImage, CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import Request, RootOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

SIZE_PX = (176, 99)
RIG = CameraRig.nuscenes_like()
FIELDS = ("rgb", "class_ids", "depth_m", "instance_ids")


@pytest.fixture(scope="module")
def drive_and_renderer() -> tuple[Drive, Renderer]:
    scene = Scene.make(1, "rightville")
    return rollout(scene.without(scene.hazards[0].name), 2.0), Renderer(scene.without(scene.hazards[0].name))


@pytest.fixture
def take(drive_and_renderer):
    """Pictures of one camera with effects, at a time of the drive."""
    drive, renderer = drive_and_renderer

    def picture(name: str = "cam_front_left", tick: int = 20, **effects: float) -> CameraImage | None:
        cameras = Cameras(renderer, CameraEffects(**effects))
        return cameras.picture(drive, name, int(drive.stamps_ns[tick]), SIZE_PX)

    return picture


def equal(one: CameraImage, other: CameraImage, names: tuple[str, ...] = FIELDS) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_without_effects_pictures_are_the_renderers_bit_for_bit(drive_and_renderer, take):
    drive, renderer = drive_and_renderer
    for name in CAMERA_NAMES:
        plain = renderer.render(drive, RIG[name], int(drive.stamps_ns[20]), SIZE_PX)
        assert equal(take(name), plain)


@pytest.mark.parametrize(
    "effects",
    [
        {"blur_px": 1.5},
        {"noise": 6.0},
        {"rolling_shutter_s": 0.05},
        {"rotation_error_deg": 1.0},
        {"position_error_m": 0.1},
        {"stamp_error_s": 0.05},
    ],
)
def test_every_effect_shows_and_comes_again_the_same(take, effects):
    once, again = take(**effects), take(**effects)
    assert equal(once, again)
    assert not equal(once, take(), ("rgb",)), "the control: it does something"
    assert once.stamp_ns == take().stamp_ns, "what is told stays what it was"


def test_blur_and_noise_leave_geometry_alone(take):
    plain, touched = take(), take(blur_px=2.0, noise=5.0)
    assert equal(plain, touched, FIELDS[1:])


def test_noise_is_as_strong_as_it_says_and_another_one_in_the_next_picture(take):
    middle = (take().rgb > 40) & (take().rgb < 215)  # nothing is cut off there
    first = (take(noise=6.0).rgb.astype(float) - take().rgb)[middle]
    second = (take(noise=6.0, tick=22).rgb.astype(float) - take(tick=22).rgb)[middle]
    assert first.std() == pytest.approx(6.0, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_blur_takes_fine_detail_away(take):
    def detail(image: CameraImage) -> float:
        return float(np.abs(np.diff(image.rgb.astype(float), axis=1)).mean())

    assert detail(take(blur_px=2.0)) < 0.7 * detail(take())


def test_rows_of_a_rolling_shutter_are_of_different_times(drive_and_renderer, take):
    """The top rows are those of an earlier picture, the bottom rows those of a later one."""
    drive, renderer = drive_and_renderer
    readout_s = 0.096
    rolled = take(rolling_shutter_s=readout_s)
    band = SIZE_PX[1] // 12
    late_ns = round(readout_s * (0.5 - 0.5 / 12) * 1e9)
    stamp_ns = int(drive.stamps_ns[20])
    before, after = (
        renderer.render(drive, RIG["cam_front_left"], t_ns, SIZE_PX)
        for t_ns in (stamp_ns - late_ns, stamp_ns + late_ns)
    )

    def apart(rows: slice, image: CameraImage) -> float:
        return float(np.abs(rolled.rgb[rows].astype(float) - image.rgb[rows]).mean())

    top, bottom = slice(0, band), slice(SIZE_PX[1] - band, None)
    assert apart(top, before) < 0.5 < apart(top, after)
    assert apart(bottom, after) < 0.5 < apart(bottom, before)


def test_a_standing_camera_has_no_rolling_shutter(drive_and_renderer):
    drive, renderer = drive_and_renderer
    still = Drive(
        **{
            **vars(drive),
            "ego": np.repeat(drive.ego[:1], len(drive.ego), axis=0),
            "agent_poses": np.repeat(drive.agent_poses[:1], len(drive.ego), axis=0),
        }
    )
    stamp_ns = int(drive.stamps_ns[20])
    plain = Cameras(renderer).picture(still, "cam_front", stamp_ns, SIZE_PX)
    rolled = Cameras(renderer, CameraEffects(rolling_shutter_s=0.03)).picture(
        still, "cam_front", stamp_ns, SIZE_PX
    )
    assert (plain.class_ids == rolled.class_ids).mean() > 0.999
    assert (np.abs(plain.rgb.astype(int) - rolled.rgb) <= 2).mean() > 0.995


def test_dropped_pictures_are_as_many_as_said(drive_and_renderer):
    drive, renderer = drive_and_renderer
    cameras = Cameras(renderer, CameraEffects(dropped=0.4))
    stamps = [int(drive.stamps_ns[0]) + i * 1_000_000 for i in range(60)]
    lost = [cameras.picture(drive, "cam_back", stamp, (16, 9)) is None for stamp in stamps]
    assert 0.25 < np.mean(lost) < 0.55
    again = [cameras.picture(drive, "cam_back", stamp, (16, 9)) is None for stamp in stamps]
    assert lost == again
    assert (
        Cameras(renderer, CameraEffects(dropped=1.0)).picture(drive, "cam_back", stamps[0], (16, 9)) is None
    )


def test_a_mounting_error_is_that_of_a_moved_camera_and_stays_over_time(drive_and_renderer):
    drive, renderer = drive_and_renderer
    cameras = Cameras(renderer, CameraEffects(rotation_error_deg=2.0, position_error_m=0.05))
    moved = inverse(RIG["cam_front"].base_from_camera) @ cameras.mounted["cam_front"].base_from_camera
    assert 0 < np.linalg.norm(moved[:3, 3]) < 0.3
    for tick in (10, 30):
        stamp_ns = int(drive.stamps_ns[tick])
        wrong = renderer.render(drive, RIG.moved("cam_front", moved)["cam_front"], stamp_ns, SIZE_PX)
        taken = cameras.picture(drive, "cam_front", stamp_ns, SIZE_PX)
        assert (np.abs(wrong.rgb.astype(int) - taken.rgb) <= 1).mean() > 0.999
    told = cameras.rig["cam_front"].base_from_camera
    np.testing.assert_array_equal(told, RIG["cam_front"].base_from_camera)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["fog=1"], "wanted NAME=VALUE with a name of blur_px"),
        (["noise=loud"], "wanted a number after noise="),
        (["dropped=1.5"], "wanted 0.0 to 1.0"),
    ],
)
def test_impossible_effects_are_refused_in_words(texts, says):
    with pytest.raises(InputError, match=says):
        CameraEffects.parse(texts)


def test_effects_are_read_from_words():
    assert CameraEffects.parse(["noise=4", "blur_px=0.8"]) == CameraEffects(noise=4.0, blur_px=0.8)


def test_a_data_set_has_the_effects_in_its_pictures_and_perfect_labels(tmp_path):
    request = Request("leftville", "val", 0, 1)
    plain, touched = tmp_path / "plain", tmp_path / "touched"
    options = RootOptions(64, 36, 1.0, lidar=False, pixel_stride=0)
    generate(plain, options, request)
    generate(touched, replace(options, effects="noise=9,dropped=0.4"), request)
    pictures = {file.relative_to(plain) for file in plain.glob("samples/CAM_*/*")}
    left = {file.relative_to(touched) for file in touched.glob("samples/CAM_*/*")}
    assert left < pictures
    assert {f for f in pictures if f.parent.name == "CAM_FRONT"} <= left, "the reference camera is never lost"
    assert all((plain / file).read_bytes() != (touched / file).read_bytes() for file in left - fronts(left))
    labels = sorted(file.relative_to(plain) for file in plain.glob("gts/**/*.npz"))
    assert labels
    for label in labels:
        with np.load(plain / label) as one, np.load(touched / label) as other:
            assert all(np.array_equal(one[name], other[name]) for name in one.files)
    cache = open_cache(Tables(touched), "val", CacheConfig(36, 64), tmp_path / "cache")
    valid = np.array([cache.history(index)[0].valid for index in range(len(cache))])
    assert valid[:, 0].all()
    assert valid.sum() == len(left), "a lost picture is masked"


def fronts(files: set) -> set:
    """Pictures of the reference camera: kept without effects where they were lost."""
    return {file for file in files if file.parent.name == "CAM_FRONT"}
