"""A generated data set as a folder: which scenes it is to hold, with which options, and which are done.

    world.json                    options of the root, and its scenes: the order in which calls asked for them
    parts/scene-NNNN.json         the table rows of a finished scene; its presence says that it is finished
    v1.0-world/                   the nuScenes tables: all parts, joined

Content depends on city, split, seed and place in the call alone; only the scene's number, taken from the
block of its city and split, depends on what the root already holds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from sparseoccvla.config import Checked, setting
from sparseoccvla.data.output import OutputError
from sparseoccvla.errors import InputError
from sparseoccvla.world.cameras import CameraRig
from sparseoccvla.world.effects import CameraEffects
from sparseoccvla.world.style import CITIES

VERSION = "v1.0-world"
LEDGER = "world.json"
FORMAT = 1
SPLITS = ("train", "val")

# First number and how many, for each city and split. The devkit reads CAN bus records of "scene-" and four
# digits, and refuses some numbers up to 1074, so ours begin above those of nuScenes.
BLOCKS = {
    ("rightville", "train"): range(2000, 5500),
    ("leftville", "train"): range(5500, 9000),
    ("rightville", "val"): range(9000, 9500),
    ("leftville", "val"): range(9500, 10_000),
}
_SEEDS_APART = 10_000


@dataclass(frozen=True)
class RootOptions(Checked):
    """What all scenes of a root have in common."""

    width_px: int = setting(704, "Width of the pictures.", unit="px", low=32, high=1600)
    height_px: int = setting(
        396, "Height of the pictures; less than 9/16 of the width cuts off sky.", unit="px", low=16, high=900
    )
    duration_s: float = setting(
        10.0, "Length of a scene; a keyframe every half second.", unit="s", low=1.0, high=30.0
    )
    sweeps: bool = setting(False, "Also camera pictures between keyframes, 12 Hz in all.")
    lidar: bool = setting(True, "Write LIDAR_TOP turns.")
    pixel_stride: int = setting(
        1, "Class and depth of every n-th pixel and row; 0 writes none.", low=0, high=16
    )
    # Part of the options, as a GPU may round a pixel to the next gray level.
    device: str = setting("cpu", "Where pictures and labels are made.", choices=("cpu", "cuda"))
    effects: str = setting("", "Camera effects, NAME=VALUE with commas between; labels don't have them.")

    @property
    def camera_effects(self) -> CameraEffects:
        """The effects in numbers.

        Raises:
            InputError: no such effect, or an impossible value.
        """
        return CameraEffects.parse(self.effects.split(",") if self.effects else ())

    def check_possible(self) -> None:
        """Raise `InputError` for a picture that the cameras can't take, or a device that is not there."""
        for camera in CameraRig.nuscenes_like().cameras:
            camera.calibration(self.size_px)
        _ = self.camera_effects
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is cuda, but torch finds no GPU here; take cpu")

    @property
    def size_px(self) -> tuple[int, int]:
        """Width, height."""
        return self.width_px, self.height_px


@dataclass(frozen=True)
class SceneSpec:
    """One scene to write."""

    name: str
    city: str
    split: str
    world_seed: int  # of `Scene.make`


@dataclass(frozen=True)
class Request:
    """Scenes asked for by one call: the first `scenes` of a seed, in a city and split."""

    city: str
    split: str
    seed: int
    scenes: int

    def check(self) -> Self:
        """Raise `InputError` for what can't be asked for."""
        if self.city not in CITIES:
            raise InputError(f"city is {self.city!r}, wanted one of {', '.join(CITIES)}")
        if self.split not in SPLITS:
            raise InputError(f"split is {self.split!r}, wanted one of {', '.join(SPLITS)}")
        room = len(BLOCKS[self.city, self.split])
        if not 1 <= self.scenes <= room:
            raise InputError(
                f"{self.scenes} scenes asked for, wanted 1 to {room}: more have no number in {self.split} "
                f"of {self.city}; generate another root for them"
            )
        if not 0 <= self.seed <= 10**9:
            raise InputError(f"seed is {self.seed}, wanted 0 to {10**9}")
        return self

    def world_seed(self, index: int) -> int:
        """Seed of the call's scene `index`; no two of all cities, splits and seeds are equal."""
        return _SEEDS_APART * self.seed + BLOCKS[self.city, self.split].start + index


class Ledger:
    """`world.json` of a root. Scenes are kept by name, with what makes them."""

    def __init__(self, root: Path, options: RootOptions, scenes: dict[str, dict[str, Any]]) -> None:
        self.root = root
        self.options = options
        self.scenes = scenes

    @classmethod
    def open(cls, root: Path, options: RootOptions) -> Ledger:
        """The ledger of a root, or an empty one for a new or empty folder; nothing is written.

        Raises:
            OutputError: the folder holds something else, or was made with other options.
        """
        if root.is_symlink() or (root.exists() and not root.is_dir()):
            raise OutputError(f"{root} exists and is no folder; choose another --out")
        ledger = root / LEDGER
        if not root.exists() or not any(item != _partial(ledger) for item in root.iterdir()):
            return cls(root, options, {})
        try:
            stored = json.loads(ledger.read_bytes())
            made_by, known, scenes = stored["made_by"], stored["options"], stored["scenes"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise OutputError(
                f"{root} exists and is no data set of `sparseoccvla world generate` ({LEDGER}: {error}), so "
                "it is left alone; choose another --out or move it away"
            ) from error
        if made_by != _made_by():
            raise OutputError(
                f"{root} was made by {made_by}, this is {_made_by()}: their scenes don't mix; choose another "
                "--out"
            )
        wanted = asdict(options)
        different = [name for name in wanted if known.get(name) != wanted[name]]
        if different:
            raise OutputError(
                f"{root} was made with "
                f"{', '.join(f'{name} {known.get(name)} instead of {wanted[name]}' for name in different)}; "
                "give the same options, or choose another --out"
            )
        return cls(root, options, scenes)

    def take(self, request: Request) -> list[SceneSpec]:
        """The scenes of a request, with new numbers for those that are new here; `save` keeps them.

        Raises:
            OutputError: the block of the city and split has no numbers left.
        """
        block = BLOCKS[request.city, request.split]
        names = {entry["world_seed"]: name for name, entry in self.scenes.items()}
        free = iter([number for number in block if scene_name(number) not in self.scenes])
        specs = []
        for index in range(request.scenes):
            seed = request.world_seed(index)
            if seed not in names:
                number = next(free, None)
                if number is None:
                    raise OutputError(
                        f"{self.root} has no numbers left for {request.split} scenes of {request.city}, it "
                        f"holds {len(block)}; choose another --out"
                    )
                names[seed] = scene_name(number)
                self.scenes[names[seed]] = {
                    "city": request.city,
                    "split": request.split,
                    "seed": request.seed,
                    "index": index,
                    "world_seed": seed,
                }
            specs.append(SceneSpec(names[seed], request.city, request.split, seed))
        return specs

    def plan(self, request: Request) -> tuple[list[SceneSpec], list[SceneSpec]]:
        """All scenes of a request, and those of them that are not finished; see `take`."""
        specs = self.take(request)
        return specs, [spec for spec in specs if not self.part(spec.name).exists()]

    def save(self) -> None:
        """Write world.json, and only then anything else: it says whose folder this is."""
        content = {"made_by": _made_by(), "options": asdict(self.options), "scenes": self.scenes}
        write_atomically(self.root / LEDGER, json.dumps(content, indent=1, sort_keys=True).encode())
        (self.root / "parts").mkdir(exist_ok=True)

    def part(self, scene: str) -> Path:
        """Where the rows of a scene lie once it is finished."""
        return self.root / "parts" / f"{scene}.json"

    def finished(self) -> list[str]:
        """Names of the finished scenes, in order."""
        return sorted(name for name in self.scenes if self.part(name).exists())


def scene_name(number: int) -> str:
    return f"scene-{number:04d}"


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    partial = _partial(file)
    partial.write_bytes(content)
    os.replace(partial, file)


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")


def _made_by() -> str:
    return f"sparseoccvla world generate, format {FORMAT}"
