"""Measure how often keyframes offer each closed question with each answer: the table that balances them.

    python -m tools.language_rates --dataroot D        # writes sparseoccvla/world/language_rates.json

D is a generated root with both cities and with pixels (`world generate --pixel-stride N`). What its keyframes
offer is read from tables, labels and pixels: that is many times quicker than to make the scenes again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import Command
from sparseoccvla.data.categories import class_of_category
from sparseoccvla.data.occ3d import label_file, read_label
from sparseoccvla.data.tables import LIDAR_CHANNEL, pose_matrix
from sparseoccvla.geometry import inverse, transform, yaw_of
from sparseoccvla.world.boxes import corners_m
from sparseoccvla.world.ground import DRIVEABLE, OTHER_FLAT
from sparseoccvla.world.language_closed import RATES_FILE, closed_facts
from sparseoccvla.world.language_view import (
    BESIDE_M,
    CLEAR_M,
    CROWD_M,
    GROUNDS,
    HORIZON_S,
    KINDS,
    PIXELS_WIDTH,
    Crowd,
    GroundView,
    KeyframeView,
    SeenThing,
    what_ifs,
)
from sparseoccvla.world.style import city_named
from sparseoccvla.world.things import paint
from sparseoccvla.world.writer import DEPTH_UNIT_M, pixel_files

Array = NDArray[np.float64]
EVERY = 2  # keyframes of a scene
LEAST_SCENES = 6  # that must offer an answer; what is rarer is not asked
LEAST_PAINT = 0.05
VERSION = "v1.0-world"
MAP_CELL_M = 0.1  # of every nuScenes map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataroot", type=Path, required=True, help="a generated root")
    dataroot = parser.parse_args().dataroot
    categories = {
        row["token"]: row["name"] for row in json.loads((dataroot / VERSION / "category.json").read_bytes())
    }
    tally = Tally()
    parts = sorted((dataroot / "parts").glob("*.json"))
    for number, part in enumerate(parts, start=1):
        tally.add(SceneTables(dataroot, json.loads(part.read_bytes())["tables"], categories))
        print(f"\r{number}/{len(parts)}", end="", file=sys.stderr)
    ledger = json.loads((dataroot / "world.json").read_bytes())
    made = {
        "command": "python -m tools.language_rates --dataroot ROOT",
        "root": {**ledger["options"], "scenes": dict(tally.scenes)},
        "keyframes": tally.keyframes,
        "rates": {city: tally.rates(city) for city in sorted(tally.scenes)},
    }
    RATES_FILE.write_text(json.dumps(made, indent=1) + "\n")


def paint_shares(draws: int = 50_000) -> dict[str, float]:
    """How often vehicles have each color, without the rarest."""
    rng = np.random.default_rng(0)
    shares = {color: n / draws for color, n in Counter(paint(rng) for _ in range(draws)).items()}
    return {color: share for color, share in sorted(shares.items()) if share > LEAST_PAINT}


class Tally:
    """What keyframes offer, in a world that drives on the right.

    Scenes of a city that drives on the left count as their mirror images: what is on the left there is on the
    right here. That tells twice as much about each.
    """

    def __init__(self) -> None:
        self.scenes: Counter[str] = Counter()
        self._paints = paint_shares()
        self.keyframes = 0
        self._offered: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        self._from: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)

    def add(self, scene: SceneTables) -> None:
        self.scenes[scene.city] += 1
        for view in scene.views():
            self.keyframes += 1
            for fact in closed_facts(view):
                # Paint is drawn whatever else there is: its shares are better known than measured.
                answers = self._paints if fact.type == "color" else {fact.answer: 1.0}
                for answer, share in answers.items():
                    key = fact.type, _as_in(scene.city, fact.slot), _as_in(scene.city, answer)
                    self._offered[key] += share
                    self._from[key].add(scene.name)

    def rates(self, city: str) -> dict[str, dict[str, dict[str, float]]]:
        """Type, slot and answer to the share of keyframes that offer it."""
        rates: dict[str, dict[str, dict[str, float]]] = {}
        for (kind, slot, answer), number in sorted(self._offered.items()):
            if len(self._from[kind, slot, answer]) >= LEAST_SCENES:
                share = round(number / self.keyframes, 5)
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


class SceneTables:
    """A scene as its part of the tables has it."""

    def __init__(self, dataroot: Path, tables: dict[str, list[dict[str, Any]]], categories: dict[str, str]):
        self.dataroot, self.tables = dataroot, tables
        [scene], [log] = tables["scene"], tables["log"]
        self.name, self.city = scene["name"], log["location"]
        self.night = "night" in scene["description"]
        self.label = {
            row["token"]: class_of_category(categories[row["category_token"]]) for row in tables["instance"]
        }
        self.poses = {row["token"]: pose_matrix(row) for row in tables["ego_pose"]}
        self.sensors = {row["token"]: row for row in tables["calibrated_sensor"]}
        self.data: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in tables["sample_data"]:
            if row["is_key_frame"]:
                self.data[row["sample_token"]][row["filename"].split("/")[1]] = row
        self.boxes = defaultdict(list)
        for row in tables["sample_annotation"]:
            self.boxes[row["sample_token"]].append(row)
        can = json.loads((dataroot / "can_bus" / f"{self.name}_pose.json").read_bytes())
        self.can_us = np.array([row["utime"] for row in can])
        self.can_speed = np.array([row["vel"][0] for row in can])
        self.can_yaw = np.unwrap([2 * np.arctan2(r["orientation"][3], r["orientation"][0]) for r in can])
        self.road = cv2.imread(str(dataroot / tables["map"][0]["filename"]), cv2.IMREAD_GRAYSCALE) > 0
        self.tracks = self._tracks()

    def _tracks(self) -> dict[str, Array]:
        """Time in seconds, x, y and continuous yaw (T, 4) of each instance."""
        stamps = {row["token"]: row["timestamp"] for row in self.tables["sample"]}
        rows = defaultdict(list)
        for row in self.tables["sample_annotation"]:
            rows[row["instance_token"]].append((stamps[row["sample_token"]], row))
        for row in self.tables["afterwards"][0]["boxes"]:
            rows[row["instance_token"]].append((row["timestamp"], row))
        tracks = {}
        for instance, entries in rows.items():
            states = []
            for stamp, row in sorted(entries, key=lambda entry: entry[0]):
                states.append(
                    ((stamp - self.can_us[0]) / 1e6, *row["translation"][:2], yaw_of(pose_matrix(row)))
                )
            track = np.array(states)
            track[:, 3] = np.unwrap(track[:, 3])
            tracks[instance] = track
        return tracks

    def views(self) -> Iterator[KeyframeView]:
        for sample in self.tables["sample"][::EVERY]:
            yield self._view(sample)

    def _view(self, sample: dict[str, Any]) -> KeyframeView:
        data = self.data[sample["token"]]
        t0_us = data["CAM_FRONT"]["timestamp"]
        global_from_base = self.poses[data["CAM_FRONT"]["ego_pose_token"]]
        seconds = np.arange(31) * 0.1
        speeds = np.interp(t0_us + seconds * 1e6, self.can_us, self.can_speed)
        start, end = np.interp([t0_us, t0_us + 3e6], self.can_us, self.can_yaw)
        cameras = [Picture(self, row) for channel, row in data.items() if channel.startswith("CAM")]
        things = tuple(self._things(sample, inverse(global_from_base), cameras))
        ground = MapGround(self, global_from_base)
        crowd = TrackCrowd(self, sample["token"], inverse(global_from_base), things)
        return KeyframeView(
            t0_ns=t0_us * 1000,
            city=self.city,
            leftville=city_named(self.city).side > 0,
            weather="",
            hour="night" if self.night else "",
            lanes=0,
            junction_m=None,
            straight_on=ground.straight_on(),
            way_left=ground.way_off(1),
            way_right=ground.way_off(-1),
            grounds=self._grounds(sample, global_from_base, cameras),
            speeds_mps=speeds,
            turned_deg=float(np.degrees(end - start)),
            command=Command.UNKNOWN,
            things=things,
            what_if=tuple(
                what_ifs(crowd, ground, t0_us * 1000, int(self.can_us[-1]) * 1000, float(speeds[0]))
            ),
            causes=(),
            hazard=self._hazard(t0_us, things),
        )

    def _things(
        self, sample: dict[str, Any], base_from_global: Array, cameras: list[Picture]
    ) -> Iterator[SeenThing]:
        second = (sample["timestamp"] - self.can_us[0]) / 1e6
        near = []
        for box in self.boxes[sample["token"]]:
            x, y, _ = transform(base_from_global, np.array(box["translation"]))
            if self.label[box["instance_token"]] in KINDS and np.hypot(x, y) < CLEAR_M:
                near.append((float(np.hypot(x, y)), x, y, box))
        for _, x, y, box in sorted(near, key=lambda entry: entry[0]):
            label, track = self.label[box["instance_token"]], self.tracks[box["instance_token"]]
            at = int(np.searchsorted(track[:, 0], second - 0.01))
            steps = np.linalg.norm(np.diff(track[max(at - 1, 0) : at + 2, 1:3], axis=0), axis=1) / 0.5
            pixels = max(camera.pixels(box, label) for camera in cameras)
            yield SeenThing(
                box["instance_token"],
                KINDS[label],
                "",
                float(x),
                float(y),
                pixels,
                float(steps.min(initial=9.0)),
                float(steps.max(initial=0.0)),
            )

    def _hazard(self, t0_us: int, things: tuple[SeenThing, ...]) -> bool | None:
        """`KeyframeView.hazard`."""
        plain = {thing.name for thing in things if thing.plain}
        going = [event for event in self.tables["events"] if event["end"] == 0 or t0_us < event["end"]]
        seen = [event for event in going if 0 < event["visible"] <= t0_us]
        soon = [event for event in going if 0 < event["react"] <= t0_us + HORIZON_S * 1e6]
        if any(event in soon and event["instance_token"] in plain for event in seen):
            return True
        return None if seen or soon else False

    def _grounds(
        self, sample: dict[str, Any], global_from_base: Array, cameras: list[Picture]
    ) -> dict[tuple[str, int], str]:
        lidar = self.poses[self.data[sample["token"]][LIDAR_CHANNEL]["ego_pose_token"]]
        semantics = read_label(label_file(self.dataroot, self.name, sample["token"])).semantics
        found = {}
        for side, sign in (("left", 1), ("right", -1)):
            for distance_m in BESIDE_M:
                point = transform(global_from_base, np.array([0.0, sign * distance_m, 0.0]))
                i, j = np.floor((transform(inverse(lidar), point)[:2] + 40) / 0.4).astype(int)
                around = semantics[i - 2 : i + 3, j - 2 : j + 3]
                flat = np.isin(around, list(GROUNDS))
                labels = np.unique(around[flat])
                if len(labels) == 1 and flat.any(axis=2).all():
                    point[2] += 0.4 * flat[2, 2].argmax() - 0.8  # the middle of the voxel
                    if any(camera.sees(point) for camera in cameras):
                        found[side, distance_m] = GROUNDS[int(labels[0])]
        return found


class Picture:
    """The pixels of one camera."""

    def __init__(self, scene: SceneTables, row: dict[str, Any]):
        sensor = scene.sensors[row["calibrated_sensor_token"]]
        self.camera_from_global = inverse(scene.poses[row["ego_pose_token"]] @ pose_matrix(sensor))
        classes, depth = (
            cv2.imread(str(scene.dataroot / file), cv2.IMREAD_UNCHANGED)
            for file in pixel_files(row["filename"])
        )
        self.classes, self.depth_m = classes, depth * DEPTH_UNIT_M
        self.stride = round(row["width"] / classes.shape[1])
        self.scale = (self.stride * PIXELS_WIDTH / row["width"]) ** 2
        self.image_from_camera = np.array(sensor["camera_intrinsic"])

    def _place(self, points_m: Array) -> tuple[Array, Array, Array]:
        """Column and row in the stored picture, and depth, of points (N, 3)."""
        seen = transform(self.camera_from_global, points_m)
        deep = np.maximum(seen[:, 2], 0.3)
        u, v, _ = (self.image_from_camera @ (seen / deep[:, None]).T) / self.stride
        return u, v, seen[:, 2]

    def pixels(self, box: dict[str, Any], label: int) -> float:
        """How many pixels of the box's class lie where it is, at a width of `PIXELS_WIDTH`."""
        width, length, height = box["size"]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
        u, v, z = self._place(transform(pose_matrix(box), signs * [length + 0.6, width + 0.6, height]))
        if z.max() < 0.5 or u.max() < 0 or u.min() > self.classes.shape[1]:
            return 0.0
        rows = slice(max(int(v.min()), 0), max(int(v.max()) + 1, 0))
        columns = slice(max(int(u.min()), 0), max(int(u.max()) + 1, 0))
        depth = self.depth_m[rows, columns]
        hits = (self.classes[rows, columns] == label) & (depth > z.min()) & (depth < z.max())
        return float(hits.sum()) * self.scale

    def sees(self, point_m: Array) -> bool:
        """Whether a point of the ground is what its pixel shows, within 1 m."""
        (u,), (v,), (z,) = self._place(point_m[None])
        row, column = round(float(v)), round(float(u))
        height, width = self.classes.shape
        if z < 0.5 or not (0 <= row < height and 0 <= column < width):
            return False
        return bool(self.classes[row, column] in GROUNDS and abs(self.depth_m[row, column] - z) < 1.0)


class MapGround(GroundView):
    """The map's road; all else is other_flat."""

    def __init__(self, scene: SceneTables, global_from_base: Array):
        self.road, self.global_from_base = scene.road, global_from_base

    def classes(self, points_m: Array) -> NDArray[np.uint8]:
        flat = np.concatenate([points_m, np.zeros((*points_m.shape[:-1], 1))], axis=-1)
        cell = np.floor(transform(self.global_from_base, flat)[..., :2] / MAP_CELL_M).astype(int)
        height, width = self.road.shape
        column, row = cell[..., 0], height - 1 - cell[..., 1]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        road = inside & self.road[row.clip(0, height - 1), column.clip(0, width - 1)]
        return np.where(road, DRIVEABLE, OTHER_FLAT).astype(np.uint8)


class TrackCrowd(Crowd):
    """The annotated boxes of a keyframe along their tracks."""

    def __init__(
        self, scene: SceneTables, sample: str, base_from_global: Array, things: tuple[SeenThing, ...]
    ):
        self.things, self.scene, self.base_from_global = things, scene, base_from_global
        self.boxes = [
            box
            for box in scene.boxes[sample]
            if np.hypot(*transform(base_from_global, np.array(box["translation"]))[:2]) < CROWD_M
        ]

    def outlines(self, stamps_ns: Sequence[int]) -> Array:
        seconds = np.array(stamps_ns) / 1e9 - self.scene.can_us[0] / 1e6
        heading = yaw_of(self.base_from_global)
        poses = np.zeros((len(seconds), len(self.boxes), 3))
        for column, box in enumerate(self.boxes):
            track = self.scene.tracks[box["instance_token"]]
            x, y, yaw = (np.interp(seconds, track[:, 0], track[:, k]) for k in (1, 2, 3))
            flat = np.stack([x, y, np.full_like(x, box["translation"][2])], axis=1)
            poses[:, column, :2] = transform(self.base_from_global, flat)[:, :2]
            poses[:, column, 2] = yaw + heading
        sizes = np.array([[box["size"][1], box["size"][0]] for box in self.boxes]).reshape(-1, 2)
        return corners_m(poses, np.broadcast_to(sizes, (*poses.shape[:2], 2)))

    def name_of(self, column: int) -> str:
        return str(self.boxes[column]["instance_token"])


if __name__ == "__main__":
    main()
