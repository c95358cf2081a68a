"""Answers the questions of a generated root once more, from its written tables and labels alone.

Written from docs/language.md. It knows nothing of what wrote the root: only json, numpy and Pillow.
A question that it cannot decide is as bad as one that it answers otherwise.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VERSION = "v1.0-world"
WORDS = {
    "vehicle.car": "car",
    "vehicle.bus": "bus",
    "vehicle.truck": "truck",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "excavator",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian": "person",
    "movable_object.trafficcone": "cone",
    "movable_object.barrier": "barrier",
}
OCC3D = {
    "barrier": 1, "bicycle": 2, "bus": 3, "car": 4, "excavator": 5,
    "motorcycle": 6, "person": 7, "cone": 8, "trailer": 9, "truck": 10,
}  # fmt: skip
PLURALS = {"people": "person", "buses": "bus", **{f"{word}s": word for word in OCC3D}}
GROUND = {11: "road", 12: "pavement", 13: "sidewalk", 14: "grass"}
COUNTS = ("zero", "one", "two", "many")
CAMERAS = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
EGO_M = (4.084, 1.85)
EGO_CENTER_M = 1.38
SLACK_M = 0.01
UNDECIDED = "?"


@dataclass(frozen=True)
class Finding:
    """One statement of the root beside what the tables say."""

    sample: str
    type: str
    question: str
    said: str
    truth: str

    @property
    def false(self) -> bool:
        return self.said != self.truth


@dataclass(frozen=True)
class Thing:
    """An annotation in base_link at t0."""

    instance: str
    word: str  # "" for what nothing is said of
    color: str
    x: float
    y: float
    pixels: float  # of its class where its box is, at a picture width of 352
    step_m: float  # how far it moves in half a second

    @property
    def distance_m(self) -> float:
        return float(np.hypot(self.x, self.y))

    @property
    def place(self) -> str:
        turned = abs(np.degrees(np.arctan2(self.y, self.x)))
        if turned <= 30:
            return "ahead"
        if turned >= 150:
            return "behind"
        return "on the left" if self.y > 0 else "on the right"

    @property
    def plain(self) -> bool:
        return self.pixels >= 30 and self.distance_m <= 35 + SLACK_M

    @property
    def motion(self) -> str:
        return "moving" if self.step_m > 0.4 else "standing" if self.step_m < 0.1 else UNDECIDED


def rotation(wxyz: list[float]) -> np.ndarray:
    """3x3 of a quaternion."""
    w, x, y, z = np.array(wxyz) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True)
class Pose:
    """Global from something."""

    turn: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, row: dict[str, Any]) -> Pose:
        return cls(rotation(row["rotation"]), np.array(row["translation"]))

    def here(self, points: np.ndarray) -> np.ndarray:
        """Global points (..., 3) seen from here."""
        return (points - self.at) @ self.turn

    def there(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) from here in the global frame."""
        return points @ self.turn.T + self.at

    @property
    def yaw(self) -> float:
        return float(np.arctan2(self.turn[1, 0], self.turn[0, 0]))


class Root:
    """The tables, by token."""

    def __init__(self, folder: Path):
        self.folder = folder
        tables = {file.stem: json.loads(file.read_bytes()) for file in (folder / VERSION).glob("*.json")}
        self.row = {
            name: {row["token"]: row for row in rows}
            for name, rows in tables.items()
            if isinstance(rows, list)
        }
        self.annotations: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in tables["sample_annotation"]:
            self.annotations[row["sample_token"]].append(row)
        self.pictures: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.ego_rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in tables["sample_data"]:
            scene = self.row["sample"][row["sample_token"]]["scene_token"]
            self.ego_rows[scene].append(self.row["ego_pose"][row["ego_pose_token"]])
            if row["is_key_frame"]:
                sensor = self.row["calibrated_sensor"][row["calibrated_sensor_token"]]["sensor_token"]
                self.pictures[row["sample_token"]][self.row["sensor"][sensor]["channel"]] = row
        self.scenes: dict[str, SceneTruth] = {}

    def scene(self, token: str) -> SceneTruth:
        if token not in self.scenes:
            self.scenes = {token: SceneTruth(self, token)}  # one at a time: maps are large
        return self.scenes[token]

    def word(self, instance: str) -> str:
        category = self.row["category"][self.row["instance"][instance]["category_token"]]["name"]
        return WORDS.get(".".join(category.split(".")[:2]), "")


class SceneTruth:
    """A scene's map, ego motion and tracks."""

    def __init__(self, root: Root, token: str):
        self.root, self.row = root, root.row["scene"][token]
        after = root.row["afterwards"].get(token, {"ego_poses": [], "boxes": []})
        poses = sorted([*root.ego_rows[token], *after["ego_poses"]], key=lambda row: row["timestamp"])
        self.times = np.array([row["timestamp"] for row in poses])
        self.yaws = np.unwrap([Pose.of(row).yaw for row in poses])
        can = json.loads((root.folder / "can_bus" / f"{self.row['name']}_pose.json").read_bytes())
        self.can_times = np.array([entry["utime"] for entry in can])
        self.can_speeds = np.array([entry["vel"][0] for entry in can])
        self.tracks: dict[str, list[tuple[int, np.ndarray, float]]] = defaultdict(list)
        samples = [row for row in root.row["sample"].values() if row["scene_token"] == token]
        for sample in samples:
            for box in root.annotations[sample["token"]]:
                self._track(sample["timestamp"], box)
        for box in after["boxes"]:
            self._track(box["timestamp"], box)
        for track in self.tracks.values():
            track.sort(key=lambda entry: entry[0])
        maps = [row for row in root.row["map"].values() if self.row["log_token"] in row["log_tokens"]]
        Image.MAX_IMAGE_PIXELS = None
        self.road = np.asarray(Image.open(root.folder / maps[0]["filename"])) > 0
        self.events = [row for row in root.row["events"].values() if row["scene_token"] == token]

    def _track(self, time: int, box: dict[str, Any]) -> None:
        pose = Pose.of(box)
        self.tracks[box["instance_token"]].append((time, pose.at, pose.yaw))

    def speed(self, time: np.ndarray | float) -> np.ndarray:
        return np.interp(time, self.can_times, self.can_speeds)

    def knows(self, time: float) -> bool:
        return bool(time <= min(self.can_times[-1], self.times[-1]))

    def turned_deg(self, start: float, end: float) -> float:
        return float(np.degrees(np.diff(np.interp([start, end], self.times, self.yaws))[0]))

    def is_road(self, points: np.ndarray) -> np.ndarray:
        """Whether global points (..., 2 or more) are on the road."""
        column = np.floor(points[..., 0] / 0.1).astype(int)
        row = self.road.shape[0] - 1 - np.floor(points[..., 1] / 0.1).astype(int)
        inside = (column >= 0) & (column < self.road.shape[1]) & (row >= 0) & (row < self.road.shape[0])
        clipped = self.road[row.clip(0, self.road.shape[0] - 1), column.clip(0, self.road.shape[1] - 1)]
        return inside & clipped

    def box_at(self, instance: str, time: float) -> tuple[np.ndarray, float] | None:
        """Center and yaw between two known times."""
        track = self.tracks[instance]
        times = np.array([entry[0] for entry in track])
        if not times[0] - 1 <= time <= times[-1] + 1 or len(track) < 2:
            return None
        index = int(np.clip(np.searchsorted(times, time) - 1, 0, len(track) - 2))
        (t0, a, yaw_a), (t1, b, yaw_b) = track[index], track[index + 1]
        part = (time - t0) / (t1 - t0)
        turn = (yaw_b - yaw_a + np.pi) % (2 * np.pi) - np.pi
        return a + part * (b - a), yaw_a + part * turn


class Keyframe:
    """Everything that the tables say about one keyframe."""

    def __init__(self, root: Root, sample: str):
        self.root, self.sample = root, sample
        row = root.row["sample"][sample]
        self.time = row["timestamp"]
        self.scene = root.scene(row["scene_token"])
        front = root.pictures[sample]["CAM_FRONT"]
        self.t0 = front["timestamp"]
        self.ego = Pose.of(root.row["ego_pose"][front["ego_pose_token"]])

    @cached_property
    def things(self) -> list[Thing]:
        """Nearest first."""
        found = []
        for box in self.root.annotations[self.sample]:
            center = np.array(box["translation"])
            x, y, _ = self.ego.here(center)
            if np.hypot(x, y) > 60:
                continue
            instance = self.root.row["instance"][box["instance_token"]]
            word = self.root.word(box["instance_token"])
            pixels = self._pixels(box, OCC3D[word]) if word else 0.0
            step = self._step_m(box)
            found.append(Thing(box["instance_token"], word, instance.get("color", ""), x, y, pixels, step))
        return sorted(found, key=lambda thing: thing.distance_m)

    def _step_m(self, box: dict[str, Any]) -> float:
        """The longer of the ways to the keyframes before and after, in half a second."""
        here, steps = np.array(box["translation"]), [0.0]
        for other in (box["prev"], box["next"]):
            if other:
                row = self.root.row["sample_annotation"][other]
                gap = abs(self.root.row["sample"][row["sample_token"]]["timestamp"] - self.time)
                if gap < 600_000:
                    steps.append(float(np.linalg.norm(np.array(row["translation"]) - here)))
        return max(steps)

    @cached_property
    def _cameras(self) -> list[tuple[Pose, Pose, np.ndarray, np.ndarray, np.ndarray, float]]:
        cameras = []
        for name in CAMERAS:
            row = self.root.pictures[self.sample][f"CAM_{name}"]
            sensor = self.root.row["calibrated_sensor"][row["calibrated_sensor_token"]]
            stem = Path(row["filename"]).stem
            classes, depth = (
                np.asarray(Image.open(self.root.folder / kind / f"CAM_{name}" / f"{stem}.png"))
                for kind in ("semantics", "depth")
            )
            stride = round(row["width"] / classes.shape[1])
            ego = Pose.of(self.root.row["ego_pose"][row["ego_pose_token"]])
            scale = stride**2 * (352 / row["width"]) ** 2
            k = np.array(sensor["camera_intrinsic"]) / np.array([[stride], [stride], [1]])
            cameras.append((ego, Pose.of(sensor), k, classes, depth / 100, scale))
        return cameras

    def _pixels(self, box: dict[str, Any], label: int) -> float:
        """Pixels of the box's class about where the box is, in the camera that has most."""
        width, length, height = box["size"]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
        corners = Pose.of(box).there(signs * [length + 1, width + 1, height + 0.3])
        most = 0.0
        for ego, sensor, k, classes, depth, scale in self._cameras:
            seen = sensor.here(ego.here(corners))
            z = seen[:, 2]
            if z.max() < 0.5:
                continue
            u, v, _ = k @ (seen / np.maximum(z, 0.3)[:, None]).T
            rows = slice(max(int(v.min()) - 2, 0), max(int(v.max()) + 3, 0))
            columns = slice(max(int(u.min()) - 2, 0), max(int(u.max()) + 3, 0))
            part = depth[rows, columns]
            hits = (classes[rows, columns] == label) & (part > z.min() - 0.5) & (part < z.max() + 0.5)
            most = max(most, float(hits.sum()) * scale)
        return most

    # --- what there is --------------------------------------------------------------------------------

    def at(self, word: str, place: str = "", reach_m: float = 35.0) -> list[Thing]:
        return [
            thing
            for thing in self.things
            if thing.word == word and thing.distance_m <= reach_m + SLACK_M and place in ("", thing.place)
        ]

    def nearest(self, word: str, place: str = "") -> Thing | None:
        """None also if it is not in plain sight."""
        found = self.at(word, place)
        return found[0] if found and found[0].plain else None

    def road(self, x: tuple[float, float], y: tuple[float, float]) -> np.ndarray:
        """Samples of a rectangle in base_link, 0.5 m apart: whether each is road."""
        grid = np.stack(
            np.meshgrid(np.arange(x[0], x[1] + 0.1, 0.5), np.arange(y[0], y[1] + 0.1, 0.5)), axis=-1
        )
        return self.scene.is_road(self.on_ground(grid))

    def on_ground(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of base_link in the global frame."""
        return self.ego.there(np.concatenate([points, np.zeros((*points.shape[:-1], 1))], axis=-1))

    def ground(self, x: float, y: float) -> str:
        """From the occupancy label, which is in base_link at the lidar's time."""
        lidar = self.root.pictures[self.sample]["LIDAR_TOP"]
        base = Pose.of(self.root.row["ego_pose"][lidar["ego_pose_token"]])
        point = base.here(self.on_ground(np.array([x, y])))
        i, j = np.floor((point[:2] + 40) / 0.4).astype(int)
        around = self.semantics[i - 1 : i + 2, j - 1 : j + 2].ravel().tolist()
        flat = {GROUND[label] for label in around if label in GROUND}
        return flat.pop() if len(flat) == 1 else UNDECIDED

    @cached_property
    def semantics(self) -> np.ndarray:
        name = self.scene.row["name"]
        with np.load(self.root.folder / "gts" / name / self.sample / "labels.npz") as label:
            return label["semantics"]

    # --- what the ego does and might do ---------------------------------------------------------------

    @cached_property
    def speeds(self) -> np.ndarray:
        """From t0 on for 3 s, every 0.1 s."""
        return self.scene.speed(self.t0 + np.arange(31) * 1e5)

    def knows(self, seconds: float) -> bool:
        return self.scene.knows(self.t0 + seconds * 1e6)

    def path(self, maneuver: str) -> np.ndarray:
        """(T, 3) x, y, yaw of base_link, every 0.1 s."""
        if maneuver == "straight":
            x = np.arange(31) * 0.1 * self.speeds[0]
            x = x[x <= 34]
            return np.stack([x, 0 * x, 0 * x], axis=1)
        poses, x, y, yaw = [], 0.0, 0.0, 0.0
        fine = 100  # small steps of straight driving
        for step in range(41):
            poses.append((x, y, yaw))
            for _ in range(fine if step < 40 else 0):
                way = 0.5 / fine
                turn = min(way / 10, max(np.pi / 2 - yaw, 0.0))
                x += way * np.cos(yaw + turn / 2)
                y += way * np.sin(yaw + turn / 2)
                yaw += turn
        sign = 1 if maneuver == "left" else -1
        return np.array(poses) * [1, sign, sign]

    def leaves(self, maneuver: str) -> str:
        path = self.path(maneuver)
        centers = path[:, :2] + EGO_CENTER_M * np.stack([np.cos(path[:, 2]), np.sin(path[:, 2])], axis=1)
        axis = np.arange(-1.3, 1.31, 0.1)
        disc = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        radius = np.hypot(disc[:, 0], disc[:, 1])
        road = self.scene.is_road(self.on_ground(centers[:, None] + disc[radius <= 1.3]))
        if road.all():
            return "no"
        close = radius[radius <= 1.3] <= 0.7
        return "yes" if (~road[:, close]).all(axis=1).any() else UNDECIDED

    def first_hit(self, maneuver: str) -> str | None:
        """The instance that the ego's box meets first, "" for none, None if a needed future is unknown."""
        for step, (x, y, yaw) in enumerate(self.path(maneuver)):
            time = self.t0 + step * 1e5
            center = np.array([x + EGO_CENTER_M * np.cos(yaw), y + EGO_CENTER_M * np.sin(yaw)])
            ego = rectangle(center, yaw, *EGO_M)
            for box in self.root.annotations[self.sample]:
                state = self.scene.box_at(box["instance_token"], time)
                if state is None:
                    continue  # it left the annotated range
                at, turned = state
                spot = self.ego.here(at)[:2]
                if np.hypot(*(spot - center)) < 12:
                    other = rectangle(spot, turned - self.ego.yaw, box["size"][1], box["size"][0])
                    if overlap(ego, other):
                        return str(box["instance_token"])
        return ""

    # --- events ---------------------------------------------------------------------------------------

    def hazard(self) -> str:
        plain = {thing.instance for thing in self.things if thing.plain}
        possible = False
        for event in self.scene.events:
            if event["end"] and event["end"] <= self.t0:
                continue
            in_sight = 0 < event["visible"] <= self.t0
            reacts = 0 < event["react"] <= self.t0 + 3_000_000
            if in_sight and reacts and event["instance_token"] in plain:
                return "yes"
            possible |= in_sight or reacts
        return UNDECIDED if possible else "no"


def rectangle(center: np.ndarray, yaw: float, length: float, width: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * [length, width]
    return center + half @ np.array([[c, s], [-s, c]])


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    for polygon in (a, b):
        for i in range(2):
            edge = polygon[i + 1] - polygon[i]
            normal = np.array([-edge[1], edge[0]])
            one, two = a @ normal, b @ normal
            if one.max() < two.min() or two.max() < one.min():
                return False
    return True


# --- questions ------------------------------------------------------------------------------------------


def word_in(question: str) -> str:
    for token in re.findall(r"[a-z]+", question.lower()):
        if token in OCC3D:
            if token == "car" and "ego car" in question:
                continue
            return token
        if token in PLURALS:
            return PLURALS[token]
    return ""


def place_in(question: str) -> str:
    text = question.lower()
    return next((place for place in ("ahead", "behind", "on the left", "on the right") if place in text), "")


def truth(keyframe: Keyframe, kind: str, question: str) -> str:
    """The answer to a closed question, `UNDECIDED` where docs/language.md does not settle it."""
    word, place = word_in(question), place_in(question)
    thing = keyframe.nearest(word, "" if kind == "side" else place) if word else None
    match kind:
        case "objects":
            nearby = keyframe.at(word, place)
            return "yes" if any(t.plain for t in nearby) else UNDECIDED if nearby else "no"
        case "side":
            return UNDECIDED if thing is None else "left" if thing.y > 0 else "right"
        case "count":
            nearby = keyframe.at(word, place)
            return COUNTS[min(len(nearby), 3)] if all(t.plain for t in nearby) else UNDECIDED
        case "distance":
            if thing is None or 12 + SLACK_M < thing.distance_m < 18 - SLACK_M:
                return UNDECIDED
            return "near" if thing.distance_m < 15 else "far"
        case "motion":
            return UNDECIDED if thing is None else thing.motion
        case "color":
            return UNDECIDED if thing is None or thing.pixels < 60 else thing.color
        case "action":
            return action(keyframe, question)
        case "speed":
            return speed(keyframe)
        case "hazard":
            return keyframe.hazard()
        case "what_if":
            return what_if(keyframe, question)
        case "road":
            return road(keyframe, question)
        case "ground":
            meters = int(re.findall(r"\d+", question)[0])
            return keyframe.ground(0.0, meters if "left" in question else -meters)
    return UNDECIDED


def decide(yes: bool, no: bool) -> str:
    return UNDECIDED if yes == no else "yes" if yes else "no"


def action(keyframe: Keyframe, question: str) -> str:
    if not keyframe.knows(3.0):
        return UNDECIDED
    speeds, slack = keyframe.speeds, 0.01
    change = speeds[20] - speeds[0]
    if "slow down" in question:
        return decide(change <= -1.5 + slack, change >= -0.5 - slack)
    if "speed up" in question:
        return decide(change >= 1.5 - slack, change <= 0.5 + slack)
    if "stop" in question:
        return decide(speeds.min() <= 0.2 + slack, speeds.min() >= 1.5 - slack)
    turned = keyframe.scene.turned_deg(keyframe.t0, keyframe.t0 + 3e6)
    turned = turned if "left" in question else -turned
    return decide(turned >= 19.5, turned <= 8.5)


def speed(keyframe: Keyframe) -> str:
    if not keyframe.knows(3.0):
        return UNDECIDED
    speeds, slack = keyframe.speeds, 0.01
    change = speeds[20] - speeds[0]
    if speeds[0] <= 0.2 + slack:
        still = speeds[:21].max() <= 0.3 + slack
        return "wait" if still else "drive off" if speeds[20] >= 1 - slack else UNDECIDED
    if speeds.min() <= 0.2 + slack:
        return "stop"
    if abs(change) <= 0.8 + slack:
        return "keep speed"
    return UNDECIDED if abs(change) < 1.5 - slack else "slow down" if change < 0 else "speed up"


def maneuver_in(question: str) -> str:
    return "straight" if "straight" in question else "left" if "left" in question else "right"


def what_if(keyframe: Keyframe, question: str) -> str:
    maneuver = maneuver_in(question.replace("leave", ""))
    leaves = keyframe.leaves(maneuver)
    if "leave the road" in question:
        return leaves
    if leaves != "no":
        return UNDECIDED
    hit = keyframe.first_hit(maneuver)
    if not hit:
        return "no" if hit == "" else UNDECIDED
    return "yes" if any(t.instance == hit and t.plain for t in keyframe.things) else UNDECIDED


def road(keyframe: Keyframe, question: str) -> str:
    if "straight" in question:
        return decide(
            bool(keyframe.road((2.2, 30.8), (-0.8, 0.8)).all()),
            not keyframe.road((24.2, 31.8), (-1.8, 1.8)).any(),
        )
    left = "left" in question
    inner, outer = ((24, 34), (21, 36)) if left else ((-34, -24), (-36, -21))
    area_m2 = keyframe.road((1, 34), inner).sum() / 4
    return decide(bool(area_m2 >= 6), not keyframe.road((-2, 36), outer).any())


# --- sentences ------------------------------------------------------------------------------------------

_COLORS = "white|black|gray|red|blue|green|yellow|orange"
_THING = rf"(?:an?) (?:({_COLORS}) )?({'|'.join(OCC3D)})"
_STANDS = re.compile(
    rf"{_THING} (ahead|behind|on the left|on the right), (\d+) meters away(?:, (moving|standing))?", re.I
)
_LISTED = re.compile(rf"{_THING} (\d+) meters away", re.I)


def stands(keyframe: Keyframe, color: str, word: str, place: str, meters: int, doing: str) -> bool:
    """Whether such a thing is in plain sight there."""
    return any(
        thing.plain
        and (not color or thing.color == color)
        and (not doing or thing.motion == doing)
        and abs(max(thing.distance_m, 5) - meters) <= 2.5 + SLACK_M
        for thing in keyframe.at(word.lower(), place)
    )


def statements(keyframe: Keyframe, files: dict[str, Any]) -> list[Finding]:
    """What the open texts say of things, and of what would happen, one finding for each statement."""
    found = []

    def note(kind: str, said: str, holds: bool) -> None:
        found.append(Finding(keyframe.sample, kind, said, "true", "true" if holds else "false"))

    texts = [("desc", "", files["desc"]["description"])]
    texts += [
        (kind, qa["question"], qa["answer"])
        for kind in ("conv", "vqa")
        for qa in files[kind]
        if "type" not in qa
    ]
    for kind, question, text in texts:
        for color, word, place, meters, doing in _STANDS.findall(text):
            note(kind, text, stands(keyframe, color, word, place, int(meters), doing))
        for color, word, meters in _LISTED.findall(text):
            note(kind, text, stands(keyframe, color, word, place_in(question), int(meters), ""))
        where = re.fullmatch(r"It is (.+), (\d+) meters away\.", text)
        if where:
            thing = keyframe.nearest(word_in(question))
            note(
                kind,
                f"{question} {text}",
                thing is not None
                and thing.place == where[1]
                and abs(max(thing.distance_m, 5) - int(where[2])) <= 2.5 + SLACK_M,
            )
        if text == "There is nothing near.":
            note(kind, question, not any(keyframe.at(word, place_in(question)) for word in OCC3D))
        if "what would happen" in question.lower():
            note(kind, f"{question} {text}", happens(keyframe, maneuver_in(question), text))
    description = keyframe.scene.row["description"]
    night = "night" in description
    note("desc", files["desc"]["description"], ("At night" in files["desc"]["description"]) == night)
    return found


def happens(keyframe: Keyframe, maneuver: str, text: str) -> bool:
    leaves = keyframe.leaves(maneuver)
    if "leave the road" in text:
        return leaves == "yes"
    hit = keyframe.first_hit(maneuver)
    if leaves != "no" or hit is None:
        return False
    struck = re.search(rf"would hit {_THING}", text)
    if struck is None:
        return hit == "" and "nothing would happen" in text.lower()
    thing = next((t for t in keyframe.things if t.instance == hit), None)
    return thing is not None and thing.word == struck[2] and struck[1] in (None, thing.color)


def files_of(root: Path, sample: str) -> dict[str, Any]:
    """The texts of a keyframe."""
    return {
        kind: json.loads(next((root / kind).glob(f"*/{sample}.json")).read_bytes())
        for kind in ("desc", "conv", "vqa", "keywords")
    }


def audit(folder: Path, samples: Sequence[str] = ()) -> tuple[list[Finding], list[Finding]]:
    """Findings of closed questions, and of statements in open texts, in some samples or in all."""
    root = Root(folder)
    closed, opened = [], []
    for sample in samples or root.row["sample"]:
        keyframe, files = Keyframe(root, sample), files_of(folder, sample)
        for qa in files["vqa"]:
            if "type" in qa:
                answer = truth(keyframe, qa["type"], qa["question"])
                closed.append(Finding(sample, qa["type"], qa["question"], qa["answer"], answer))
        opened += statements(keyframe, files)
    return closed, opened
