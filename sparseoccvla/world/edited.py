"""Edited pictures for a generated root: event frames without their hazard, others with another look.

    edits/EDIT/samples/CAM_*/     pictures of a keyframe and of the one before it, named as the root's
    edits/edits.json              one row for each edited keyframe, see `write_edits`

All else of a sample stays true: motion, ego state, command, and with an irrelevant edit its labels as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S
from sparseoccvla.data.edits import FOLDER, TABLE, edited_file
from sparseoccvla.data.scene import Keyframe, load_scene
from sparseoccvla.data.scene import Scene as RecordedScene
from sparseoccvla.data.splits import scenes_of_split
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.edits import Edit, EditKind, apply, edited_scene
from sparseoccvla.world.effects import CameraEffects, Cameras
from sparseoccvla.world.render import Renderer
from sparseoccvla.world.rollout import rollout
from sparseoccvla.world.roots import LEDGER, write_atomically
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.style import HOURS, WEATHERS
from sparseoccvla.world.world import future_of
from sparseoccvla.world.writer import FIRST_KEYFRAME_S, JPEG_QUALITY
from sparseoccvla.world.writer_tables import Row, token

_AFTER_S = NUM_STEPS * STEP_S + 0.1


def write_edits(
    tables: Tables,
    split: str,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> int:
    """Edit keyframes of a split that need sight, and as many that don't; returns how many.

    With `limit` so many of those that need sight, evenly spread over the split.

    A row says sample_token, edit (its name), kind, hazard ("" for an irrelevant edit), seen (whether any
    picture at t0 changed: a hazard that has been in sight may be hidden again) and future: (S, 3) what the
    expert does from t0 on where the edit is true from the start.

    Raises:
        InputError: the root does not say which scenes of the world it shows, or other ones.
    """
    recorded = [load_scene(tables, name) for name in scenes_of_split(tables, split)]
    worlds, effects = _worlds_of(tables.dataroot)
    file = tables.dataroot / FOLDER / TABLE
    rows = {row["token"]: row for row in (json.loads(file.read_bytes()) if file.exists() else ())}
    flagged = [(scene, index) for scene in recorded for index in _needing_sight(scene)]
    if limit is not None and limit < len(flagged):
        flagged = [flagged[i] for i in np.linspace(0, len(flagged) - 1, limit).round().astype(int)]
    for done, scene in enumerate(recorded):
        progress(done, len(recorded))
        mine = [index for owner, index in flagged if owner is scene]
        if not mine:
            continue
        city, seed = worlds[scene.name]
        studio = _Studio(tables.dataroot, scene, Scene.make(seed, city), effects)
        for row in studio.edited(mine):
            rows[row["token"]] = row
    progress(len(recorded), len(recorded))
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(list(rows.values()), indent=1).encode())
    return len(rows)


def _worlds_of(dataroot: Path) -> tuple[dict[str, tuple[str, int]], CameraEffects]:
    """City and seed of every scene of a root, and the effects of its cameras."""
    try:
        ledger = json.loads((dataroot / LEDGER).read_bytes())
        effects = ledger["options"].get("effects", "")
        scenes = {name: (spec["city"], int(spec["world_seed"])) for name, spec in ledger["scenes"].items()}
        return scenes, CameraEffects.parse(effects.split(",") if effects else ())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{dataroot} is no data set of `sparseoccvla world generate` ({error}), so it can't be edited"
        ) from error


def _needing_sight(scene: RecordedScene) -> list[int]:
    return [
        i for i, frame in enumerate(scene.keyframes) if frame.marks is not None and frame.marks.needs_sight
    ]


class _Studio:
    """One scene of a root made again, to take its pictures with edits."""

    def __init__(self, dataroot: Path, recorded: RecordedScene, scene: Scene, effects: CameraEffects) -> None:
        self._dataroot, self._recorded = dataroot, recorded
        self._scene, self._effects = scene, effects
        self._start_ns = recorded.keyframes[0].stamp_ns - round(FIRST_KEYFRAME_S * NS_PER_S)
        self._seconds = (recorded.keyframes[-1].stamp_ns - self._start_ns) / NS_PER_S + _AFTER_S
        self._drive = rollout(self._scene, self._seconds, self._start_ns)
        self._edited: dict[Edit, tuple[Cameras, Drive, Drive]] = {}

    def edited(self, flagged: list[int]) -> list[Row]:
        """Take pictures of these keyframes without their hazard, and of as many others in another look."""
        draws = stream(self._scene.seed, "edits")
        others = sorted(set(range(len(self._recorded.keyframes))) - set(_needing_sight(self._recorded)))
        plain = sorted(draws.permutation(others)[: len(flagged)].tolist())
        rows = [self._row(index, self._without_hazard(self._recorded.keyframes[index])) for index in flagged]
        return rows + [self._row(index, _other_look(self._scene, draws)) for index in plain]

    def _without_hazard(self, keyframe: Keyframe) -> Edit:
        names = [event.name for event in self._drive.events if event.needs_sight(keyframe.t0_ns)]
        if not names:
            raise InputError(
                f"sample {keyframe.token} of {self._recorded.name} needs sight, but not in the world of this "
                "version; generate the data set anew"
            )
        [hazard] = [hazard for hazard in self._scene.hazards if hazard.name == names[0]]
        return Edit.without(hazard)

    def _row(self, index: int, edit: Edit) -> Row:
        cameras, drive, driven = self._with(edit)
        keyframe = self._recorded.keyframes[index]
        if index > 0:
            self._take(self._recorded.keyframes[index - 1], edit, cameras, drive)
        seen = self._take(keyframe, edit, cameras, drive)
        return {
            "token": token("edit", keyframe.token, edit.name),
            "sample_token": keyframe.token,
            "edit": edit.name,
            "kind": str(edit.kind),
            "hazard": edit.hazard,
            "seen": seen,
            "future": np.round(future_of(driven, keyframe.t0_ns), 4).tolist(),
        }

    def _with(self, edit: Edit) -> tuple[Cameras, Drive, Drive]:
        """Cameras and drive for the pictures, and what the expert does instead."""
        if edit not in self._edited:
            scene, drive = apply(self._scene, self._drive, edit)
            driven = drive
            if edit.hazard:
                driven = rollout(edited_scene(self._scene, edit), self._seconds, self._start_ns)
            self._edited[edit] = (Cameras(Renderer(scene), self._effects), drive, driven)
        return self._edited[edit]

    def _take(self, keyframe: Keyframe, edit: Edit, cameras: Cameras, drive: Drive) -> bool:
        """Take all pictures of a keyframe that the root has; whether any differs from the root's."""
        seen = False
        for name, calibration in self._recorded.cameras.items():
            frame = keyframe.frames.get(name)
            if frame is None:
                continue
            size = (calibration.width_px, calibration.height_px)
            image = cameras.picture(drive, name, frame.stamp_ns, size)
            if image is not None:
                file = edited_file(self._dataroot, edit.name, frame.file.relative_to(self._dataroot))
                file.parent.mkdir(parents=True, exist_ok=True)
                rgb = np.ascontiguousarray(image.rgb)
                content = simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB")
                file.write_bytes(content)
                seen = seen or content != frame.file.read_bytes()
        return seen


def _other_look(scene: Scene, draws: np.random.Generator) -> Edit:
    """Another paint, weather or hour: nothing that a driver acts on."""
    kind = (EditKind.COLORS, EditKind.WEATHER, EditKind.HOUR)[int(draws.integers(3))]
    choices: dict[EditKind, list[Any]] = {
        EditKind.COLORS: [scene.seed + 1 + int(draws.integers(1000))],
        EditKind.WEATHER: [weather for weather in WEATHERS if weather != scene.sky.weather],
        EditKind.HOUR: [hour for hour in HOURS if hour != scene.sky.hour],
    }
    return Edit(kind, str(draws.choice(choices[kind])))
