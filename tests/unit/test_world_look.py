"""`world look`: the contact sheet shows the moment it is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sparseoccvla.cli import app
from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.errors import InputError
from sparseoccvla.world import Renderer, Scene, rollout
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.look import HEIGHT, WIDTH, contact_sheet, telling_stamp

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture(scope="module")
def scene_and_drive():
    scene = Scene.make(15, "leftville")
    return scene, rollout(scene, 5.0)


def test_the_sheet_shows_the_moment_before_the_driver_acts(scene_and_drive):
    scene, drive = scene_and_drive
    [event] = drive.events
    assert event.visible_ns <= telling_stamp(drive) < event.react_ns
    sheet = contact_sheet(scene, drive, Cameras(Renderer(scene)), telling_stamp(drive))
    assert sheet.shape == (HEIGHT, WIDTH, 3)
    assert sheet.std() > 20
    later = contact_sheet(scene, drive, Cameras(Renderer(scene)), telling_stamp(drive) + NS_PER_S)
    assert (sheet != later).any(axis=-1).mean() > 0.1


def test_lost_pictures_leave_their_tiles_empty(scene_and_drive):
    scene, drive = scene_and_drive
    cameras = Cameras(Renderer(scene), CameraEffects(dropped=1.0))
    sheet = contact_sheet(scene, drive, cameras, telling_stamp(drive))
    assert np.ptp(sheet[200:260, 40:150], axis=(0, 1)).max() == 0


def test_the_verb_writes_a_png_and_says_what_is_in_it(tmp_path):
    out = tmp_path / "new" / "sheet.png"
    arguments = ["world", "look", "--seed", "15", "--city", "leftville", "--seconds", "5", "--at", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--edit", "remove=stopped_truck-0"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["hazards"] == []
    assert said["at_s"] == 2.0
    with Image.open(out) as picture:
        assert picture.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--at", "9"], "wanted 0 to 5"),
        (["--edit", "remove"], "KIND=VALUE"),
        (["--effect", "fog=1"], "NAME=VALUE"),
        (["--city", "atlantis"], "rightville"),
    ],
)
def test_impossible_options_are_refused_in_words(tmp_path, option, says):
    arguments = ["world", "look", "--seed", "15", "--seconds", "5", "--out", str(tmp_path / "x.png")]
    result = CliRunner().invoke(app, [*arguments, *option])
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)
    assert not (tmp_path / "x.png").exists()
