"""Rows of the nuScenes tables. Quaternions are (w, x, y, z) there, times integer microseconds.

Tokens are hashes of what a row is about, so that they depend on neither options nor order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES
from sparseoccvla.data.tables import LIDAR_CHANNEL
from sparseoccvla.geometry import pose_from_matrix
from sparseoccvla.world.drive import Box
from sparseoccvla.world.things import CATEGORIES

Row = dict[str, Any]
Rows = dict[str, list[Row]]

CHANNELS = (*(name.upper() for name in CAMERA_NAMES), LIDAR_CHANNEL)

# What nuscenes-devkit loads, and three of ours.
TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"),
    *("scene", "sample", "sample_data", "sample_annotation", "map"),
)
EXTRA_TABLES = ("events", "keyframes", "afterwards")

_VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
_ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked"),
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
)


def token(*parts: str | int) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.blake2b(" ".join(str(part) for part in parts).encode(), digest_size=16).hexdigest()


def shared_rows() -> Rows:
    """Rows that are the same in every root."""
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": ""}
            for name in sorted(set(CATEGORIES.values()))
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": ""} for name in _ATTRIBUTES
        ],
        "visibility": [
            {"token": number, "level": level, "description": f"{level[1:]} % of it is seen"}
            for number, level in _VISIBILITY.items()
        ],
        "sensor": [
            {
                "token": token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR_CHANNEL else "camera",
            }
            for channel in CHANNELS
        ],
    }


def placed(matrix: NDArray[np.floating]) -> Row:
    """Translation [m] and rotation of a 4x4, rounded far below what matters: that hides the last bits
    of arithmetic, which may differ between two runs.
    """
    translation, (x, y, z, w) = pose_from_matrix(matrix)
    return {
        "translation": [round(float(value), 6) + 0.0 for value in translation],
        "rotation": [round(float(value), 9) + 0.0 for value in (w, x, y, z)],
    }


def chained(rows: list[Row]) -> list[Row]:
    """The rows with `prev` and `next`, tokens of their neighbors."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, before, after in zip(rows, tokens, tokens[2:], strict=False):
        row["prev"], row["next"] = before, after
    return rows


def instance_rows(annotations: list[Row], boxes: dict[str, Box]) -> list[Row]:
    """The instances of a scene's annotations, in the order in which they first appear; links both.

    Args:
        annotations: in time order.
        boxes: one of each instance, by its token.
    """
    tracks: dict[str, list[Row]] = defaultdict(list)
    for row in annotations:
        tracks[row["instance_token"]].append(row)
    return [
        {
            "token": instance,
            "category_token": token("category", boxes[instance].category),
            "nbr_annotations": len(track),
            "first_annotation_token": track[0]["token"],
            "last_annotation_token": track[-1]["token"],
            "color": boxes[instance].color,
        }
        for instance, track in tracks.items()
        if chained(track)
    ]


def attributes_of(category: str, moving: bool, standing: bool) -> list[str]:
    """Attribute tokens of a box; `standing`: it never moves in this scene."""
    match category.split("."):
        case ["vehicle", "bicycle" | "motorcycle"]:
            name = "cycle.without_rider" if standing else "cycle.with_rider"
        case ["vehicle", *_]:
            name = "vehicle.parked" if standing else "vehicle.moving" if moving else "vehicle.stopped"
        case ["human", *_]:
            name = "pedestrian.moving" if moving else "pedestrian.standing"
        case _:
            return []
    return [token("attribute", name)]
