"""What stands or moves in a scene, and the catalog it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CLASS_NAMES
from sparseoccvla.world import props, vehicles
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.shapes import Body, Color

Size = tuple[float, float, float]

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "parked_motorcycle": "vehicle.motorcycle",
    "parked_bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "worker": "human.pedestrian.construction_worker",
    "child": "human.pedestrian.child",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
    "bin": "movable_object.pushable_pullable",
    "debris": "movable_object.debris",
}
_LABELS = {
    "worker": "pedestrian",
    "child": "pedestrian",
    "bin": "others",
    "debris": "others",
    "parked_bicycle": "bicycle",
    "parked_motorcycle": "motorcycle",
}

# The colors that a question may ask for, and how often vehicles have them.
PAINTS: dict[str, Color] = {
    "white": (0.92, 0.92, 0.91),
    "black": (0.08, 0.08, 0.09),
    "gray": (0.47, 0.48, 0.50),
    "red": (0.72, 0.09, 0.09),
    "blue": (0.10, 0.25, 0.62),
    "green": (0.12, 0.42, 0.22),
    "yellow": (0.93, 0.74, 0.12),
    "orange": (0.90, 0.42, 0.08),
}
_CAR_SHARES = (0.22, 0.15, 0.17, 0.16, 0.15, 0.06, 0.06, 0.03)
_SHIRT_SHARES = (0.16, 0.12, 0.13, 0.16, 0.17, 0.10, 0.08, 0.08)


@dataclass(frozen=True)
class Thing:
    """Anything solid but the ground. With a `category` it is annotated, without it is scenery."""

    name: str  # unique in its scene, e.g. "car-12"
    kind: str  # a key of CATEGORIES, or "tree", "building", ...
    label: int  # Occ3D class
    size_m: Size  # length, width, height
    body: Body
    pose: NDArray[np.float64]  # (6,) x, y, z, yaw, pitch, roll of its ground point, if it stands still
    category: str = ""
    color: str = ""  # the word for its color, a key of PAINTS


def label_of(kind: str) -> int:
    """Occ3D class of a catalog kind."""
    return CLASS_NAMES.index(_LABELS.get(kind, kind))


def paint(rng: np.random.Generator, shares: tuple[float, ...] = _CAR_SHARES) -> str:
    """The name of a color drawn with these shares."""
    return str(rng.choice(list(PAINTS), p=np.asarray(shares) / sum(shares)))


def make(kind: str, name: str, seed: int, colors: int, color: str | None = None) -> Thing:
    """A thing of a catalog kind, at the origin.

    Its shape is drawn from `seed` and its name, its color from `colors` and its name unless given: neither
    depends on what else there is.
    """
    paints = stream(colors, "paint", name)
    word = color or paint(paints, _SHIRT_SHARES if label_of(kind) == 7 else _CAR_SHARES)
    size, body, word = _build(kind, stream(seed, "shape", name), paints, word)
    return Thing(name, kind, label_of(kind), size, body, np.zeros(6), CATEGORIES[kind], word)


def _jitter(rng: np.random.Generator, size: Size, spread: float = 0.05) -> Size:
    length, width, height = (float(s * rng.uniform(1 - spread, 1 + spread)) for s in size)
    return (length, width, height)


def _shade(rng: np.random.Generator, word: str) -> Color:
    r, g, b = (float(np.clip(c * rng.uniform(0.88, 1.08), 0, 1)) for c in PAINTS[word])
    return (r, g, b)


def _build(
    kind: str, rng: np.random.Generator, paints: np.random.Generator, word: str
) -> tuple[Size, Body, str]:
    color = _shade(paints, word)
    match kind:
        case "car":
            style = str(rng.choice(["sedan", "hatch", "suv", "van"], p=[0.38, 0.27, 0.25, 0.10]))
            base = {
                "sedan": (4.6, 1.85, 1.46),
                "hatch": (4.0, 1.76, 1.50),
                "suv": (4.7, 1.92, 1.74),
                "van": (5.1, 1.98, 2.05),
            }[style]
            size = _jitter(rng, base, 0.04)
            return size, vehicles.car(size, color, style), word
        case "truck":
            size = _jitter(rng, (7.2, 2.45, 3.2), 0.12)
            return size, vehicles.truck(size, color), word
        case "bus":
            size = _jitter(rng, (11.2, 2.55, 3.2), 0.06)
            return size, vehicles.bus(size, color), word
        case "trailer":
            size = _jitter(rng, (6.5, 2.3, 2.7), 0.12)
            return size, vehicles.trailer(size, color), word
        case "construction_vehicle":
            size = _jitter(rng, (7.0, 2.6, 3.1), 0.08)
            return size, vehicles.construction_vehicle(size, _shade(paints, "yellow")), "yellow"
        case "parked_motorcycle" | "parked_bicycle":
            motor = kind == "parked_motorcycle"
            size = (2.1, 0.75, 1.15) if motor else (1.75, 0.62, 1.12)
            return size, vehicles.bicycle(size, color, motor=motor), word
        case "motorcycle" | "bicycle":
            size = (2.1, 0.75, 1.65) if kind == "motorcycle" else (1.75, 0.62, 1.72)
            shirt = _shade(paints, paint(paints, _SHIRT_SHARES))
            return size, vehicles.bicycle(size, color, shirt, motor=kind == "motorcycle"), word
        case "pedestrian" | "child":
            height = rng.uniform(1.58, 1.88) if kind == "pedestrian" else rng.uniform(1.05, 1.35)
            size = (0.6 * height / 1.75, 0.62 * height / 1.75, float(height))
            trousers = [(0.13, 0.15, 0.22), (0.24, 0.22, 0.20), (0.36, 0.33, 0.28)][int(paints.integers(3))]
            skin, stride = int(paints.integers(4)), float(rng.uniform(0.12, 0.28))
            return size, props.pedestrian(size, color, trousers, skin, stride=stride), word
        case "worker":
            size = (0.62, 0.64, float(rng.uniform(1.7, 1.85)))
            vest = _shade(paints, "orange")
            return (
                size,
                props.pedestrian(size, vest, (0.18, 0.22, 0.35), int(paints.integers(4)), True),
                "orange",
            )
        case "traffic_cone":
            size = (0.42, 0.42, 0.78)
            return size, props.cone(size), "orange"
        case "barrier":
            size = (0.6, 2.0, 1.0)
            striped = bool(paints.random() < 0.5)
            return size, props.barrier(size, striped), "orange" if striped else "gray"
        case "bin":
            size = _jitter(rng, (0.62, 0.7, 1.1), 0.08)
            return size, props.bin_(size, color), word
        case "debris":
            size = _jitter(rng, (0.8, 0.7, 0.45), 0.2)
            return size, props.debris(size, (0.66, 0.50, 0.33)), ""
    raise ValueError(f"no such kind of thing: {kind!r}, wanted one of {', '.join(CATEGORIES)}")
