"""Calls fill one data set: alike however many work on it, whoever interrupts it, whatever else is there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparseoccvla.data.output import OutputError, exclusive
from sparseoccvla.errors import InputError
from sparseoccvla.world import generate as generate_module
from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import BLOCKS, Ledger, Request, RootOptions

TINY = RootOptions(64, 36, 1.0, pixel_stride=2)
TWO = Request("rightville", "train", 0, 2)


def digests(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("world") / "root"
    generate(root, TINY, TWO, workers=1)
    return digests(root)


@pytest.mark.slow
def test_a_killed_call_goes_on_to_the_same_bytes_with_other_workers(whole, tmp_path):
    root = tmp_path / "root"
    command = [sys.executable, "-m", "sparseoccvla", "world", "generate", "--out", str(root)]
    command += ["--scenes", "2", "--seed", "0", "--city", "rightville", "--split", "train"]
    command += ["--size", "64x36", "--duration", "1", "--pixel-stride", "2", "--workers"]
    running = subprocess.Popen([*command, "1"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(root.glob("samples/*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert list(root.glob("samples/*/*"))
    assert not (root / "v1.0-world").exists()
    finished = subprocess.run([*command, "2"], capture_output=True, check=True)
    summary = json.loads(finished.stdout)
    assert summary["scenes"] == 2
    assert summary["keyframes"] == 4
    assert digests(root) == whole


@pytest.mark.slow
def test_other_scenes_are_added_and_none_is_written_twice(whole, tmp_path, monkeypatch):
    root = tmp_path / "root"
    generate(root, TINY, Request("rightville", "train", 0, 1))
    before = digests(root)
    summary = generate(root, TINY, TWO)
    assert (summary.scenes, summary.written, summary.keyframes) == (2, 1, 4)
    after = digests(root)
    assert after == whole
    pictures = [name for name in before if name.startswith(("samples", "gts", "can_bus"))]
    assert pictures
    assert all(before[name] == after[name] for name in pictures)


def test_scene_numbers_of_calls_do_not_meet(tmp_path):
    ledger = Ledger.open(tmp_path / "root", TINY)
    calls = [Request(city, split, seed, 3) for city, split in BLOCKS for seed in (0, 7)]
    specs = [spec for call in calls for spec in ledger.take(call)]
    assert len({spec.name for spec in specs}) == len({spec.world_seed for spec in specs}) == len(specs)
    for spec in specs:
        assert int(spec.name[-4:]) in BLOCKS[spec.city, spec.split]
    assert ledger.take(calls[0]) == specs[:3]  # asked for again: the same
    more = ledger.take(Request("rightville", "train", 0, 5))
    assert more[:3] == specs[:3]
    assert {spec.name for spec in more[3:]}.isdisjoint(spec.name for spec in specs)


def test_numbers_are_those_that_the_devkit_s_can_bus_reads():
    numbers = [number for block in BLOCKS.values() for number in block]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 1110  # the last scene of nuScenes; the devkit refuses some before it
    assert max(numbers) <= 9999


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request("atlantis", "train", 0, 1), "city is 'atlantis', wanted one of rightville, leftville"),
        (Request("rightville", "test", 0, 1), "split is 'test', wanted one of train, val"),
        (Request("rightville", "train", 0, 0), "0 scenes asked for, wanted 1 to 3500"),
        (Request("rightville", "val", 0, 501), "501 scenes asked for, wanted 1 to 500.*another root"),
        (Request("rightville", "train", -1, 1), "seed is -1, wanted 0 to 1000000000"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_written(tmp_path, request_, text):
    with pytest.raises(InputError, match=text):
        generate(tmp_path / "root", TINY, request_)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width_px": 352, "height_px": 300}, "picture size is 352x300, wanted .* at most 198 rows"),
        ({"duration_s": 0.4}, "duration_s is 0.4 s, wanted 1.0 to 30.0 s"),
        ({"pixel_stride": 17}, "pixel_stride is 17, wanted 0 to 16"),
        ({"device": "abacus"}, "device is 'abacus', wanted one of cpu, cuda"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, text):
    with pytest.raises(InputError, match=text):
        generate(tmp_path / "root", RootOptions(**options), TWO)
    with pytest.raises(InputError, match="workers is 0, wanted 1 or more"):
        generate(tmp_path / "root", TINY, TWO, workers=0)
    assert not list(tmp_path.iterdir())


def test_other_options_into_the_same_root_are_refused_by_name(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    Ledger.open(root, TINY).save()
    with pytest.raises(
        OutputError,
        match=r"made with height_px 36 instead of 32, sweeps False instead of True; give the same",
    ):
        generate(root, RootOptions(64, 32, 1.0, sweeps=True, pixel_stride=2), TWO)
    assert sorted(file.name for file in root.rglob("*")) == ["parts", "world.json"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"is no data set of `sparseoccvla world generate` .*left alone"):
        generate(tmp_path, TINY, TWO)
    with pytest.raises(OutputError, match="is no folder; choose another --out"):
        generate(tmp_path / "thesis.tex", TINY, TWO)
    (tmp_path / "world.json").write_text('{"made_by": "someone else", "options": {}, "scenes": {}}')
    with pytest.raises(OutputError, match="was made by someone else, this is"):
        generate(tmp_path, TINY, TWO)


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OutputError, match=r"has 1 MB free, about \d+ MB are needed for 2 scenes; make room"):
        generate(tmp_path / "root", TINY, TWO)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_what_a_rerun_goes_on_from(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate_module, "_write_all", full)
    with pytest.raises(
        OutputError, match=r"no room for .*; 0 scenes are finished. Make room and give the same"
    ):
        generate(tmp_path / "root", TINY, TWO)
    assert len(Ledger.open(tmp_path / "root", TINY).scenes) == 2


def test_a_call_killed_before_anything_was_written_can_be_repeated(tmp_path):
    (tmp_path / ".world.json.partial").write_text("{")
    Ledger.open(tmp_path, TINY).save()
    assert Ledger.open(tmp_path, TINY).options == TINY


def test_two_calls_at_a_time_are_kept_apart(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    Ledger.open(root, TINY).save()
    with exclusive(root, root), pytest.raises(OutputError, match="another process is writing"):
        generate(root, TINY, TWO)
