"""Samples on disk, mapped into memory: training starts in seconds and its cores stay fed.

A cache is a folder of plain arrays and JSON made by `cache_build` from one split of one data set.
Pictures are stored resized to the network's width but not cropped, so that augmentation has the sky to
cut from; with `pictures="files"` they are decoded from the data set at every access, which costs no disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import Checked, MemoryConfig, setting
from sparseoccvla.contracts import (
    CAMERA_NAMES,
    FREE_CLASS,
    OCC3D_GRID,
    Command,
    EgoState,
    EncodedImage,
    EncoderInput,
)
from sparseoccvla.data.agents import Agents
from sparseoccvla.data.augment import AugmentationConfig, random_color, random_fit, random_jitter
from sparseoccvla.data.commands import FUTURE_TRAJECTORY
from sparseoccvla.data.occ3d import OccupancyLabel
from sparseoccvla.data.omnidrive import Language, QuestionAnswer
from sparseoccvla.data.samples import Sample, Truth
from sparseoccvla.errors import InputError
from sparseoccvla.images import Fit, fit
from sparseoccvla.memory import select_history

FORMAT = 2
MANIFEST = "cache.json"
VOXELS = int(np.prod(OCC3D_GRID.shape))


class CacheError(InputError):
    """A cache can't be used; the text says why and what to do."""


@dataclass(frozen=True)
class CacheConfig(Checked):
    """What a cache holds; another value needs another cache."""

    height_px: int = setting(128, "Height of the network's pictures.", unit="px", low=8, high=2160)
    width_px: int = setting(352, "Width of the network's pictures.", unit="px", low=8, high=3840)
    sweeps: bool = setting(False, "Also camera sets between keyframes, as history for jitter.")
    pictures: str = setting(
        "raw", "raw: stored decoded; files: decoded at every access.", choices=("raw", "files")
    )

    @property
    def size_px(self) -> tuple[int, int]:
        return self.height_px, self.width_px


@dataclass(frozen=True)
class Views:
    """Arrays over all camera sets, (V, ...); `scene` groups them."""

    t0_ns: NDArray[np.int64]
    scene: NDArray[np.int64]
    source_from_odom: NDArray[np.float64]  # (V, N, 4, 4) file pixels
    odom_from_base: NDArray[np.float64]  # (V, 4, 4)
    valid: NDArray[np.bool_]  # (V, N)
    source_px: NDArray[np.int64]  # (V, N, 2) height, width


@dataclass(frozen=True)
class Truths:
    """Arrays over all samples, (n, ...), as in `Truth`. `*_end` are the ends of its ranges of `Flat`."""

    t0_ns: NDArray[np.int64]
    view: NDArray[np.int64]
    ego_motion: NDArray[np.float64]  # (n, 4) speed, acceleration, yaw rate, steering
    ego_past: NDArray[np.float64]  # (n, 4, 3)
    ego_valid: NDArray[np.bool_]  # (n, 6) motion, steering, four past poses
    command: NDArray[np.uint8]
    routed: NDArray[np.bool_]  # the command is a route's
    hazards: NDArray[np.uint32]  # bit i: one of kind i of the manifest's `hazards` is in sight
    needs_sight: NDArray[np.bool_]
    future: NDArray[np.float64]  # (n, S, 3)
    future_valid: NDArray[np.bool_]  # (n, S)
    base_from_label: NDArray[np.float64]  # (n, 4, 4)
    agent_end: NDArray[np.int64]
    voxel_end: NDArray[np.int64]
    language_end: NDArray[np.int64]  # bytes
    labeled: NDArray[np.bool_]


@dataclass(frozen=True)
class Flat:
    """Arrays of all samples one after another."""

    agent_poses: NDArray[np.float32]  # (A, S + 1, 3)
    agent_valid: NDArray[np.bool_]  # (A, S + 1)
    agent_sizes_m: NDArray[np.float32]  # (A, 3)
    agent_kinds: NDArray[np.uint8]  # (A,)
    voxel_index: NDArray[np.uint32]  # (O,) occupied voxels, flat x y z index
    voxel_class: NDArray[np.uint8]  # (O,)
    masks: NDArray[np.uint8]  # (n, 2, voxels / 8) camera and lidar, packed bits
    language: NDArray[np.uint8]  # JSON of one sample after another


def array_file(folder: Path, group: type, name: str) -> Path:
    """Where the array `name` of Views, Truths or Flat lies."""
    return folder / f"{group.__name__.lower()}.{name}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        CacheError: no cache there, or one of another format.
    """
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
        found = manifest["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CacheError(f"{folder} is no cache of samples ({MANIFEST}: {error})") from error
    if found != FORMAT:
        raise CacheError(
            f"cache {folder} has format {found}, wanted {FORMAT}; delete it, it will be built again"
        )
    return dict(manifest)


class SampleCache:
    """Every sample of a split, by number; equal calls give equal samples.

    Cheap to open and to send to another process: arrays are mapped, not read.

    Raises:
        CacheError: no cache at `folder`, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.config = CacheConfig(**self.manifest["config"])
        self.tokens: list[str] = self.manifest["tokens"]
        self.scenes: list[str] = self.manifest["scenes"]
        self.missing: dict[str, int] = self.manifest["missing"]  # what the data set lacks, counted
        self.hazard_kinds: list[str] = self.manifest["hazards"]
        self._views = _open(folder, Views)
        self._truths = _open(folder, Truths)
        self._flat = _open(folder, Flat)
        self._pictures = (
            _map(folder / "pictures.npy") if self.config.pictures == "raw" else None
        )  # (V, N, H, W, 3)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def needs_sight(self) -> NDArray[np.bool_]:
        """(n,) samples whose plan needs eyes: a hazard is in sight that nobody has reacted to yet."""
        return np.array(self._truths.needs_sight)

    def truth(self, index: int) -> Truth:
        """All but pictures, occupancy and language."""
        t, flat = self._truths, self._flat
        agents = slice(*_range(t.agent_end, index))
        speed, acceleration, yaw_rate, steering = (float(value) for value in t.ego_motion[index])
        valid = t.ego_valid[index]
        return Truth(
            self.tokens[index],
            self.scenes[self._views.scene[t.view[index]]],
            int(t.t0_ns[index]),
            EgoState(
                int(t.t0_ns[index]),
                speed,
                acceleration,
                yaw_rate,
                steering,
                np.array(t.ego_past[index]),
                bool(valid[0]),
                bool(valid[1]),
                np.array(valid[2:]),
            ),
            Command(int(t.command[index])),
            np.array(t.future[index]),
            np.array(t.future_valid[index]),
            Agents(
                np.array(flat.agent_poses[agents]),
                np.array(flat.agent_valid[agents]),
                np.array(flat.agent_sizes_m[agents]),
                np.array(flat.agent_kinds[agents]),
            ),
            np.array(t.base_from_label[index]),
            "route" if t.routed[index] else FUTURE_TRAJECTORY,
            tuple(kind for bit, kind in enumerate(self.hazard_kinds) if t.hazards[index] >> bit & 1),
            bool(t.needs_sight[index]),
        )

    def odom_from_base(self, index: int) -> NDArray[np.float64]:
        """(4, 4) at t0, in the odom frame of the sample's scene: places samples of a scene to each other."""
        return np.array(self._views.odom_from_base[self._truths.view[index]])

    def source(self, index: int) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
        """Picture files of a keyframe, relative to the dataroot, "" where there is none; source_from_odom
        (N, 4, 4), whose pixels are those of the files; and the files' sizes (N, 2), height and width.
        """
        view, views = int(self._truths.view[index]), self._views
        return self._files[view], np.array(views.source_from_odom[view]), np.array(views.source_px[view])

    def occupancy(self, index: int) -> OccupancyLabel | None:
        """The label in base_link at its own time, None where the data set has none."""
        if not self._truths.labeled[index]:
            return None
        voxels = slice(*_range(self._truths.voxel_end, index))
        semantics = np.full(VOXELS, FREE_CLASS, np.uint8)
        semantics[self._flat.voxel_index[voxels]] = self._flat.voxel_class[voxels]
        camera, lidar = (
            np.unpackbits(bits, count=VOXELS).astype(bool).reshape(OCC3D_GRID.shape)
            for bits in self._flat.masks[index]
        )
        return OccupancyLabel(semantics.reshape(OCC3D_GRID.shape), camera, lidar)

    def language(self, index: int) -> Language:
        """What is said about the sample."""
        start, end = _range(self._truths.language_end, index)
        stored = json.loads(self._flat.language[start:end].tobytes())
        questions = tuple(QuestionAnswer(**entry) for entry in stored.pop("questions"))
        return Language(**stored, questions=questions)

    def history(
        self,
        index: int,
        frames: int = 1,
        augmentation: AugmentationConfig | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[EncoderInput | None, ...]:
        """T camera sets, t0 first, chosen as the live memory chooses; augmented alike over time.

        Args:
            index: of the sample.
            frames: T.
            augmentation: None for validation.
            rng: of the augmentation; needed with it.
        """
        jitter = random_jitter(frames, augmentation, rng) if augmentation and rng else ()
        fits = self._fits(int(self._truths.view[index]), augmentation, rng)
        return tuple(
            None if view is None else self._inputs(view, fits, augmentation, rng)
            for view in self._past_views(index, frames, jitter)
        )

    def files(self, index: int, frames: int = 1) -> tuple[tuple[str, ...] | None, ...]:
        """Picture files of an unaugmented `history`, relative to the data set; "" for a missing one."""
        return tuple(
            None if view is None else tuple(self._files[view]) for view in self._past_views(index, frames, ())
        )

    def _past_views(self, index: int, frames: int, jitter: Sequence[float]) -> list[int | None]:
        view = int(self._truths.view[index])
        first, last = self._scene_range(view)
        stamps = [int(stamp) for stamp in self._views.t0_ns[first:last]]
        chosen = select_history(stamps, stamps[view - first], frames, MemoryConfig().tolerance_s, jitter)
        return [None if place is None else first + place for place in chosen]

    def sample(
        self,
        index: int,
        frames: int = 1,
        augmentation: AugmentationConfig | None = None,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Everything about one keyframe; see `history` for the arguments."""
        return Sample(
            self.truth(index),
            self.history(index, frames, augmentation, rng),
            self.occupancy(index),
            self.language(index),
        )

    def _scene_range(self, view: int) -> tuple[int, int]:
        scene = self._views.scene[view]
        first, last = np.searchsorted(self._views.scene, [scene, scene + 1])
        return int(first), int(last)

    def _fits(
        self, view: int, augmentation: AugmentationConfig | None, rng: np.random.Generator | None
    ) -> list[Fit]:
        """For each camera, from what is stored to the network's picture."""
        size_px = self.config.size_px
        fits = []
        for source_px in self._views.source_px[view]:
            stored_px = _pair(source_px) if self._pictures is None else _pair(self._pictures.shape[2:4])
            if augmentation and rng:
                fits.append(random_fit(stored_px, size_px, augmentation, rng))
            else:
                fits.append(fit(stored_px, size_px))
        return fits

    def _inputs(
        self,
        view: int,
        fits: Sequence[Fit],
        augmentation: AugmentationConfig | None,
        rng: np.random.Generator | None,
    ) -> EncoderInput:
        views = self._views
        height, width = self.config.size_px
        images = np.zeros((len(CAMERA_NAMES), height, width, 3), np.uint8)
        projections = np.array(views.source_from_odom[view])
        for camera, chosen in enumerate(fits):
            if not views.valid[view, camera]:
                continue
            images[camera] = self._picture(view, camera, chosen)
            if augmentation and rng:
                images[camera] = random_color(images[camera], augmentation, rng)
            to_stored = np.diag([*np.divide(chosen.source_px, views.source_px[view, camera])[::-1], 1.0])
            projections[camera, :3] = chosen.matrix @ to_stored @ projections[camera, :3]
        return EncoderInput(
            int(views.t0_ns[view]),
            images,
            projections,
            np.array(views.odom_from_base[view]),
            np.array(views.valid[view]),
        )

    def _picture(self, view: int, camera: int, chosen: Fit) -> NDArray[np.uint8]:
        if self._pictures is not None:
            return chosen.apply(self._pictures[view, camera])
        file = Path(self.manifest["dataroot"]) / self._files[view][camera]
        return chosen.load(read_picture(file, CAMERA_NAMES[camera], int(self._views.t0_ns[view])))

    @cached_property
    def _files(self) -> list[list[str]]:
        return list(json.loads((self.folder / "files.json").read_bytes()))


def read_picture(file: Path, camera: str, stamp_ns: int) -> EncodedImage:
    """A picture file as it is.

    Raises:
        CacheError: it can't be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CacheError(
            f"can't read picture {file} ({error.strerror}); is the data set complete?"
        ) from error
    return EncodedImage(camera, stamp_ns, data, "png" if file.suffix == ".png" else "jpeg")


def _open[Group](folder: Path, group: type[Group]) -> Group:
    names = [item.name for item in fields(group)]  # type: ignore[arg-type]
    return group(**{name: _map(array_file(folder, group, name)) for name in names})


def _map(file: Path) -> NDArray[Any]:
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise CacheError(f"cache file {file} is missing or damaged ({error}); delete the cache") from error
    return np.asarray(mapped)


def _range(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    return (int(ends[index - 1]) if index else 0), int(ends[index])


def _pair(values: Sequence[int] | NDArray[np.integer]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)
