"""Cause and effect: does the plan change when its reason is taken away, and only then?

For event frames of a generated root the world paints the pictures again three times: as they are, without
the hazard that the driver is about to react to, and with another sky or other paint. Motion, ego state and
command stay the same, so that plans differ by what the model saw alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sparseoccvla.config import MemoryConfig
from sparseoccvla.contracts import HORIZON_S, NS_PER_S, EncodedImage, EncoderInput
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.runner import Models, by_scene
from sparseoccvla.images import fit
from sparseoccvla.memory import FeatureMemory, select_history
from sparseoccvla.runtime.base import FeatureSet
from sparseoccvla.world import CameraRig, Drive, Renderer, Scene, rollout
from sparseoccvla.world.edits import Edit, EditKind, apply
from sparseoccvla.world.style import HOURS, WEATHERS
from sparseoccvla.world.writer import FIRST_KEYFRAME_S, JPEG_QUALITY

CHANGED_M = 1.0  # a plan with a waypoint farther off than this has changed
THRESHOLDS_M = (0.5, CHANGED_M, 2.0)
# Mean difference of gray levels beyond which a painted picture is another scene's.
_OTHER_SCENE = 8.0


@dataclass(frozen=True)
class Effect:
    """Three plans for one event frame; trajectories are lists (S, 3) for JSON."""

    token: str
    hazard: str  # kind, e.g. "pedestrian"
    neutral: str  # kind of the irrelevant edit
    base: list[list[float]]
    without: list[list[float]]  # with the hazard removed or calmed
    neutral_plan: list[list[float]]


def find_effects(
    models: Models,
    cache: SampleCache,
    dataroot: Path,
    folder: Path,
    count: int,
    wanted: int,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[list[Effect], list[tuple[str, str]]]:
    """Plans of at most `wanted` event frames among the first `count` keyframes, drawn by `seed`.

    What is found is kept in `folder`, one file for each scene, and not computed again.

    Returns:
        Effects, and for each frame that gave none its token and why.

    Raises:
        InputError: the root does not say which scenes of the world it shows.
    """
    try:
        ledger = json.loads((dataroot / "world.json").read_bytes())
        scenes, options = ledger["scenes"], ledger["options"]
        size = int(options["width_px"]), int(options["height_px"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{dataroot} is no generated root ({error}), so nothing in it can be edited"
        ) from error
    events = np.flatnonzero(cache.needs_sight[:count])
    rng = np.random.default_rng(seed)
    chosen = set(rng.choice(events, min(wanted, len(events)), replace=False).tolist())
    folder.mkdir(parents=True, exist_ok=True)
    effects: list[Effect] = []
    skipped: list[tuple[str, str]] = []
    for name, indices in by_scene([cache.truth(index) for index in range(count)]).items():
        mine = [index for index in indices if index in chosen]
        if not mine:
            continue
        file = folder / f"{name}.json"
        if not file.exists():
            world = _WorldScene(scenes[name]["city"], int(scenes[name]["world_seed"]), size, cache, indices)
            found = [_effect(models, cache, world, index, seed) for index in mine]
            file.write_text(json.dumps([asdict(f) if isinstance(f, Effect) else list(f) for f in found]))
        for row in json.loads(file.read_bytes()):
            if isinstance(row, dict):
                effects.append(Effect(**row))
            else:
                skipped.append((row[0], row[1]))
        progress(len(mine))
    return effects, skipped


def effect_figures(effects: Sequence[Effect]) -> dict[str, Any]:
    """Shares of plans that change, by threshold and kind, and how much farther the freed plans go."""
    if not effects:
        return {"n": 0}
    freed = np.array([_largest(e.base, e.without) for e in effects])
    neutral = np.array([_largest(e.base, e.neutral_plan) for e in effects])
    farther = np.array([_length(e.without) - _length(e.base) for e in effects])
    hazards, neutrals = np.array([e.hazard for e in effects]), np.array([e.neutral for e in effects])
    return {
        "n": len(effects),
        "changed_m": CHANGED_M,
        "hazard_removed": {f"{t:g}m": float((freed > t).mean()) for t in THRESHOLDS_M},
        "irrelevant": {f"{t:g}m": float((neutral > t).mean()) for t in THRESHOLDS_M},
        "mean_farther_at_3s_m": float(farther.mean()),
        "hazard_removed_by_kind": _shares(hazards, freed),
        "irrelevant_by_kind": _shares(neutrals, neutral),
    }


def _shares(kinds: NDArray[np.str_], change_m: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    return {
        str(kind): {
            "n": int((kinds == kind).sum()),
            "changed": float((change_m[kinds == kind] > CHANGED_M).mean()),
        }
        for kind in np.unique(kinds)
    }


def _largest(a: list[list[float]], b: list[list[float]]) -> float:
    return float(np.linalg.norm(np.subtract(a, b)[:, :2], axis=1).max())


def _length(plan: list[list[float]]) -> float:
    return float(np.linalg.norm(np.diff(np.asarray(plan)[:, :2], axis=0, prepend=0), axis=1).sum())


class _WorldScene:
    """The scene of a root made again, and its pictures with any edit, at the times of the root's own."""

    def __init__(
        self, city: str, world_seed: int, size: tuple[int, int], cache: SampleCache, indices: list[int]
    ) -> None:
        self.scene = Scene.make(world_seed, city)
        self.rig = CameraRig.nuscenes_like()
        self._size = size
        self._cache = cache
        self._indices = indices
        first_ns = self.nominal_ns(indices[0])
        seconds = FIRST_KEYFRAME_S + (self.nominal_ns(indices[-1]) - first_ns) / NS_PER_S + HORIZON_S + 0.1
        self.drive = rollout(self.scene, seconds, first_ns - round(FIRST_KEYFRAME_S * NS_PER_S))
        self._renderers: dict[str, tuple[Renderer, Drive]] = {"": (Renderer(self.scene), self.drive)}

    def nominal_ns(self, index: int) -> int:
        """A keyframe's own time: that of the lidar, from which each camera has its offset."""
        return self._cache.truth(index).t0_ns - self.rig.cameras[0].offset_ns

    def inputs(self, index: int, edit: Edit | None) -> EncoderInput:
        """A keyframe's input with pictures painted anew, through JPEG as those of the root are."""
        renderer, drive = self._edited(edit)
        [inputs] = self._cache.history(index)
        assert inputs is not None
        _, height_px, width_px, _ = inputs.images_rgb.shape
        fitted = fit((self._size[1], self._size[0]), (height_px, width_px))
        images = np.zeros_like(inputs.images_rgb)
        for place, camera in enumerate(self.rig.cameras):
            stamp_ns = self.nominal_ns(index) + camera.offset_ns
            rgb = np.ascontiguousarray(renderer.render(drive, camera, stamp_ns, self._size).rgb)
            jpeg = simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB")
            images[place] = fitted.load(EncodedImage(camera.name, stamp_ns, jpeg))
        return replace(inputs, images_rgb=images)

    def frames(self, index: int, frames: int) -> list[int | None]:
        """Which keyframes are the history of one, as the ring chooses."""
        stamps = [self._cache.truth(i).t0_ns for i in self._indices]
        places = select_history(stamps, self._cache.truth(index).t0_ns, frames, MemoryConfig().tolerance_s)
        return [None if place is None else self._indices[place] for place in places]

    def _edited(self, edit: Edit | None) -> tuple[Renderer, Drive]:
        name = edit.name if edit else ""
        if name not in self._renderers:
            assert edit is not None
            scene, drive = apply(self.scene, self.drive, edit)
            self._renderers[name] = (Renderer(scene), drive)
        return self._renderers[name]


def _effect(
    models: Models, cache: SampleCache, world: _WorldScene, index: int, seed: int
) -> Effect | tuple[str, str]:
    """The three plans of an event frame, or its token and why there are none."""
    truth = cache.truth(index)
    events = [event for event in world.drive.events if event.needs_sight(truth.t0_ns)]
    if not events:
        return truth.token, "the world has no such event now: the root was made by another version"
    painted, [stored] = world.inputs(index, None), cache.history(index)
    assert stored is not None
    apart = np.abs(painted.images_rgb.astype(int) - stored.images_rgb).mean()
    if apart > _OTHER_SCENE:
        return truth.token, "the world paints this keyframe otherwise: the root was made by another version"
    [hazard] = [h for h in world.scene.hazards if h.name == events[0].name]
    neutral = _neutral(world.scene, np.random.default_rng([seed, index]))
    base, without, other = (
        _plan(models, cache, world, index, edit) for edit in (None, Edit.without(hazard), neutral)
    )
    return Effect(truth.token, hazard.kind, neutral.kind, base, without, other)


def _neutral(scene: Scene, rng: np.random.Generator) -> Edit:
    """Another paint, weather or hour: nothing a driver acts on."""
    match int(rng.integers(3)):
        case 0:
            return Edit(EditKind.COLORS, str(scene.seed + 1 + int(rng.integers(1000))))
        case 1:
            return Edit(EditKind.WEATHER, str(rng.choice([w for w in WEATHERS if w != scene.sky.weather])))
        case _:
            return Edit(EditKind.HOUR, str(rng.choice([h for h in HOURS if h != scene.sky.hour])))


def _plan(
    models: Models, cache: SampleCache, world: _WorldScene, index: int, edit: Edit | None
) -> list[list[float]]:
    """The chosen trajectory with edited pictures, in the history as well."""
    assert models.reasoner is not None
    assert models.planner is not None
    frames = models.encoder.info.history_frames
    memory: FeatureMemory[FeatureSet] = FeatureMemory(MemoryConfig(), frames)
    for past in sorted({i for i in world.frames(index, frames) if i is not None}):
        inputs = world.inputs(past, edit)
        memory.add(inputs.t0_ns, models.encoder.extract(inputs))
    truth = cache.truth(index)
    seen = models.encoder.decode(memory.select(truth.t0_ns))
    token = models.reasoner.reason(seen.queries).reasoning
    proposal = models.planner.plan(seen.queries, truth.ego, truth.command, token, 0.0).validate()
    plan: list[list[float]] = proposal.trajectory.astype(float).tolist()
    return plan
