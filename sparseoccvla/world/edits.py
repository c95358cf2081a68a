"""Cause and effect: the same scene with one thing changed and everything else equal.

An edit changes pictures and never the recorded motion: the ego and every other agent stay exactly where they
were, so that two pictures differ by the edit alone. What the driver would then do is another question, which
`rollout` answers with the edited scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from sparseoccvla.errors import InputError
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.hazards import LEADS, Hazard
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.simulate import Control, Simulation
from sparseoccvla.world.style import make_sky


class EditKind(StrEnum):
    """What an edit changes. The first three ought to change a plan, the others ought not to."""

    REMOVE = "remove"  # a hazard: its things are not there
    CALM = "calm"  # a lead vehicle: it is there but never brakes
    ADD = "add"  # a hazard that the scene could have
    COLORS = "colors"  # all paint from another seed
    WEATHER = "weather"
    HOUR = "hour"


@dataclass(frozen=True)
class Edit:
    """One change: what kind, and which hazard, seed, weather or hour."""

    kind: EditKind
    value: str

    @classmethod
    def parse(cls, text: str) -> Edit:
        """An edit written as kind=value, e.g. ``remove=pedestrian-0`` or ``weather=rain``.

        Raises:
            InputError: no such kind, or a seed that is no number.
        """
        kind, _, value = text.partition("=")
        if kind not in list(EditKind) or not value:
            raise InputError(f"edit is {text!r}, wanted KIND=VALUE with a kind of {', '.join(EditKind)}")
        if kind == EditKind.COLORS and not value.isdecimal():
            raise InputError(f"edit is {text!r}, wanted colors=SEED with a seed of at least 0")
        return cls(EditKind(kind), value)

    @classmethod
    def without(cls, hazard: Hazard) -> Edit:
        """The edit after which a hazard does not happen: a lead drives on, any other is not there."""
        return cls(EditKind.CALM if hazard.kind in LEADS else EditKind.REMOVE, hazard.name)

    @property
    def name(self) -> str:
        """A name for folders and tables, e.g. ``remove-pedestrian-0``."""
        return f"{self.kind}-{self.value}"

    @property
    def hazard(self) -> str:
        """The hazard it is about, "" if it changes nothing that a driver acts on."""
        return self.value if self.kind in (EditKind.REMOVE, EditKind.CALM, EditKind.ADD) else ""


def edited_scene(scene: Scene, edit: Edit) -> Scene:
    """The scene after an edit; `rollout` of it is what the driver then does.

    Raises:
        InputError: a hazard that takes no part, can't be had or is no lead; no such weather or hour.
    """
    match edit.kind:
        case EditKind.REMOVE:
            _part(scene, edit.value)
            return scene.without(edit.value)
        case EditKind.CALM:
            if _part(scene, edit.value).kind not in LEADS:
                raise InputError(
                    f"hazard {edit.value!r} is no lead vehicle, so it can't be calmed; remove it"
                )
            return scene.calmed(edit.value)
        case EditKind.ADD:
            if any(hazard.name == edit.value for hazard in scene.hazards):
                raise InputError(f"hazard {edit.value!r} is in scene {scene.seed} already")
            made = _made_again(scene, scene.colors, edit.value)
            [new] = [hazard for hazard in made.hazards if hazard.name == edit.value]
            # Who shares a lane is told by its path being the same object.
            route, again = scene.ego.route, made.ego.route
            plans = tuple(replace(p, path=route) if p.path is again else p for p in new.plans)
            hazards = sorted((*scene.hazards, replace(new, plans=plans)), key=lambda hazard: hazard.name)
            return replace(scene, hazards=tuple(hazards))
        case EditKind.COLORS:
            made = _made_again(scene, int(edit.value), *scene.possible_hazards)
            painted = {hazard.name: hazard.things for hazard in made.hazards}
            return replace(
                scene,
                colors=made.colors,
                standing=made.standing,
                traffic=tuple(
                    (new, plan) for (new, _), (_, plan) in zip(made.traffic, scene.traffic, strict=True)
                ),
                hazards=tuple(replace(hazard, things=painted[hazard.name]) for hazard in scene.hazards),
            )
        case EditKind.WEATHER:
            return replace(scene, sky=make_sky(scene.seed, edit.value, scene.sky.hour))
        case EditKind.HOUR:
            return replace(scene, sky=make_sky(scene.seed, scene.sky.weather, edit.value))


def apply(scene: Scene, drive: Drive, edit: Edit) -> tuple[Scene, Drive]:
    """The edited scene, and the drive as it was: the ego and all other agents move exactly as recorded.

    Hazards that were added or calmed move as they would around the recorded ego; nobody gives way to them, so
    the pictures are true until somebody would have. A removed hazard's event is gone, others stay.

    Raises:
        InputError: as `edited_scene`.
    """
    edited = edited_scene(scene, edit)
    if not edit.hazard:
        return edited, replace(drive, standing=edited.standing, agents=edited.agents)
    before = {thing.name: column for column, thing in enumerate(drive.agents)}
    stays = [before.get(thing.name, -1) for thing in edited.agents]
    if edit.kind is not EditKind.REMOVE:
        [hazard] = [hazard for hazard in edited.hazards if hazard.name == edit.value]
        own = {thing.name for thing in hazard.things}
        stays = [
            -1 if thing.name in own else column for thing, column in zip(edited.agents, stays, strict=True)
        ]
    return edited, _with_agents(edited, drive, np.array(stays, int))


def _with_agents(scene: Scene, drive: Drive, columns: np.ndarray) -> Drive:
    """The drive with a scene's agents: from these columns of it, and simulated beside it where -1."""
    kept = replace(
        drive,
        agents=scene.agents,
        agent_poses=drive.agent_poses[:, columns],
        agent_accelerations_mps2=drive.agent_accelerations_mps2[:, columns],
        agent_signals=drive.agent_signals[:, columns],
        events=tuple(e for e in drive.events if e.name in {hazard.name for hazard in scene.hazards}),
    )
    new = np.nonzero(columns < 0)[0]
    if len(new):
        beside = _beside(scene, drive)
        for name in ("agent_poses", "agent_accelerations_mps2", "agent_signals"):
            getattr(kept, name)[:, new] = getattr(beside, name)[:, new]
    return kept


def _beside(scene: Scene, drive: Drive) -> Drive:
    """What a scene's agents do around an ego that drives as recorded."""
    sim = Simulation(scene, int(drive.stamps_ns[0]))
    for tick in range(1, len(drive.stamps_ns)):
        sim.step(Control(0.0, 0.0))
        sim.ego_pose = drive.ego[tick, [0, 1, 3]]
        sim.ego_v = float(drive.speed_mps[tick])
    return sim.drive()


def _part(scene: Scene, name: str) -> Hazard:
    for hazard in scene.hazards:
        if hazard.name == name:
            return hazard
    names = ", ".join(hazard.name for hazard in scene.hazards)
    raise InputError(f"hazard {name!r} takes no part in scene {scene.seed}; these do: {names or 'none'}")


def _made_again(scene: Scene, colors: int, *add: str) -> Scene:
    return Scene.make(
        scene.seed,
        scene.city.name,
        weather=scene.sky.weather,
        hour=scene.sky.hour,
        colors=colors,
        add=add,
    )
