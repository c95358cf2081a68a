"""Measure how often keyframes offer each closed question with each answer: the table that balances them.

python -m tools.language_rates --scenes 100        # writes sparseoccvla/world/language_rates.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict

import numpy as np
import torch

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.world import CameraImage, CameraRig, Drive, Scene, rollout
from sparseoccvla.world.drive import DT_S, START_NS
from sparseoccvla.world.expert import Expert
from sparseoccvla.world.language_closed import RATES_FILE, closed_facts
from sparseoccvla.world.language_view import look_around
from sparseoccvla.world.render import lens_of
from sparseoccvla.world.simulate import Simulation
from sparseoccvla.world.style import CITIES, city_named

FIRST_SEED = 500_000  # of no data set: theirs end in 2000 to 9999
SIZE_PX = (352, 128)
DURATION_S, FIRST_S, EVERY_S, LAST_S = 14.1, 0.5, 2.0, 10.0  # as the keyframes of data sets lie
EVENTS_EVERY = 6  # scenes
LEAST_SCENES = 8  # that must offer an answer; what is rarer is not asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100, help="of each city")
    count = parser.parse_args().scenes
    torch.set_num_threads(1)
    tally = Tally()
    for number in range(count):
        tally.add(FIRST_SEED + number)
        print(f"\r{number + 1}/{count}", end="", file=sys.stderr)
    write(tally, f"python -m tools.language_rates --scenes {count}")


def write(tally: Tally, command: str) -> None:
    rates = {city: tally.rates(city) for city in CITIES}
    RATES_FILE.write_text(json.dumps({"command": command, "rates": rates}, indent=1) + "\n")


class Tally:
    """What keyframes offer, in a world that drives on the right.

    Scenes of a city that drives on the left count as their mirror images: what is on the left there is on the
    right here. That tells twice as much about each.
    """

    def __init__(self) -> None:
        self._offered: Counter[tuple[str, str, str]] = Counter()
        self._scenes: defaultdict[tuple[str, str, str], set[tuple[str, int]]] = defaultdict(set)
        self._keyframes = {False: 0, True: 0}  # of all scenes; of those with events

    def add(self, seed: int) -> None:
        """Look at this scene in each city. Events take most of the time, so that only few scenes have any."""
        with_events = seed % EVENTS_EVERY == 0
        for city in CITIES:
            scene = Scene.make(seed, city)
            drive = rollout(scene, DURATION_S) if with_events else _without_events(scene)
            for second in np.arange(FIRST_S, LAST_S, EVERY_S):
                stamp_ns = int(drive.stamps_ns[0]) + round(second * NS_PER_S)
                view = look_around(scene, drive, stamp_ns, glance(scene, drive, stamp_ns))
                for fact in closed_facts(view):
                    if with_events or fact.type != "hazard":
                        key = fact.type, _as_in(city, fact.slot), _as_in(city, fact.answer)
                        self._offered[key] += 1
                        self._scenes[key].add((city, seed))
                self._keyframes[False] += 1
                self._keyframes[True] += with_events

    def rates(self, city: str) -> dict[str, dict[str, dict[str, float]]]:
        """Type, slot and answer to the share of keyframes that offer it."""
        rates: dict[str, dict[str, dict[str, float]]] = {}
        for (kind, slot, answer), number in sorted(self._offered.items()):
            if len(self._scenes[kind, slot, answer]) >= LEAST_SCENES:
                share = round(number / self._keyframes[kind == "hazard"], 5)
                rates.setdefault(kind, {}).setdefault(_as_in(city, slot), {})[_as_in(city, answer)] = share
        return {
            kind: kept
            for kind, slots in rates.items()
            if (kept := {slot: answers for slot, answers in slots.items() if len(answers) > 1})
        }


def _as_in(city: str, words: str) -> str:
    """Words of a city in the world that drives on the right, and back."""
    if city_named(city).side < 0:
        return words
    return re.sub("left|right", lambda side: {"left": "right", "right": "left"}[side[0]], words)


def _without_events(scene: Scene) -> Drive:
    sim, expert = Simulation(scene, START_NS), Expert(scene)
    for _ in range(round(DURATION_S / DT_S)):
        sim.step(expert.control(sim))
    return sim.drive()


def glance(scene: Scene, drive: Drive, stamp_ns: int) -> list[CameraImage]:
    """The pictures of a keyframe without their colors and classes, which take most of the time."""
    images = []
    for camera in CameraRig.nuscenes_like().cameras:
        at_ns = stamp_ns + camera.offset_ns
        pose = drive.world_from_base(at_ns) @ camera.base_from_camera
        moving = scene.stage.moving(drive.look_at(at_ns))
        lens = lens_of(camera.calibration(SIZE_PX))
        hits, faces = scene.stage.cast(torch.from_numpy(pose).float(), lens, moving)
        seen = hits.face >= 0
        images.append(
            CameraImage(
                camera.name,
                at_ns,
                np.zeros((0, 0, 3), np.uint8),
                np.zeros((0, 0), np.uint8),
                torch.where(seen, 1 / hits.inverse_depth, torch.inf).numpy(),
                torch.where(seen, faces.instance[hits.face.clamp(min=0)], 0).numpy(),
            )
        )
    return images


if __name__ == "__main__":
    main()
