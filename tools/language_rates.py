"""Measure how often keyframes offer each closed question with each answer: the table that balances them.

python -m tools.language_rates --scenes 100        # writes sparseoccvla/world/language_rates.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict

import numpy as np
import torch

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.world import CameraImage, CameraRig, Drive, Scene, rollout
from sparseoccvla.world.language_closed import RATES_FILE, closed_facts
from sparseoccvla.world.language_view import look_around
from sparseoccvla.world.render import lens_of
from sparseoccvla.world.style import CITIES

FIRST_SEED = 500_000  # of no data set: theirs end in 2000 to 9999
SIZE_PX = (352, 128)
DURATION_S, FIRST_S, EVERY_S, LAST_S = 14.1, 0.5, 1.0, 10.0  # as the keyframes of data sets lie
LEAST_SCENES = 8  # that must offer an answer; what is rarer is not asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100, help="of each city")
    count = parser.parse_args().scenes
    torch.set_num_threads(1)
    rates = {city: measured(city, count) for city in CITIES}
    made_by = f"python -m tools.language_rates --scenes {count}"
    RATES_FILE.write_text(json.dumps({"command": made_by, "rates": rates}, indent=1) + "\n")


def measured(city: str, scenes: int) -> dict[str, dict[str, dict[str, float]]]:
    """Type, slot and answer to the share of keyframes that offer it."""
    offered: Counter[tuple[str, str, str]] = Counter()
    from_scenes: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
    keyframes = 0
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        scene = Scene.make(seed, city)
        drive = rollout(scene, DURATION_S)
        for second in np.arange(FIRST_S, LAST_S, EVERY_S):
            stamp_ns = int(drive.stamps_ns[0]) + round(second * NS_PER_S)
            for fact in closed_facts(look_around(scene, drive, stamp_ns, glance(scene, drive, stamp_ns))):
                offered[fact.type, fact.slot, fact.answer] += 1
                from_scenes[fact.type, fact.slot, fact.answer].add(seed)
            keyframes += 1
        print(f"\r{city} {seed - FIRST_SEED + 1}/{scenes}", end="", file=sys.stderr)
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, slot, answer), number in sorted(offered.items()):
        if len(from_scenes[kind, slot, answer]) >= LEAST_SCENES:
            rates.setdefault(kind, {}).setdefault(slot, {})[answer] = round(number / keyframes, 5)
    return {
        kind: kept
        for kind, slots in rates.items()
        if (kept := {slot: answers for slot, answers in slots.items() if len(answers) > 1})
    }


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
