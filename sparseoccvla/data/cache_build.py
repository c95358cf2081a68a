"""Builds the caches that `cache.SampleCache` reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, FREE_CLASS
from sparseoccvla.data.cache import (
    FORMAT,
    MANIFEST,
    VOXELS,
    CacheConfig,
    CacheError,
    Flat,
    SampleCache,
    Truths,
    Views,
    array_file,
    read_manifest,
    read_picture,
)
from sparseoccvla.data.can_bus import read_motion
from sparseoccvla.data.occ3d import label_file, read_label
from sparseoccvla.data.omnidrive import read_language
from sparseoccvla.data.output import new_folder
from sparseoccvla.data.samples import SceneSamples, Truth, scene_samples
from sparseoccvla.data.scene import Frame, Scene, load_scene
from sparseoccvla.data.splits import scenes_of_split
from sparseoccvla.data.tables import Tables
from sparseoccvla.images import fit

Progress = Callable[[int, int], None]  # scenes done, scenes in all


def open_cache(
    tables: Tables,
    split: str,
    config: CacheConfig,
    folder: Path,
    progress: Progress = lambda _done, _all: None,
    threads: int = 2,
) -> SampleCache:
    """The cache of a split at `folder`, built first if there is none.

    Raises:
        DataSetError: the data set can't be read.
        CacheError: the cache there was made from other tables, another split or with other settings.
        OutputError: something foreign lies there, or there is no room.
    """
    wanted = _identity(tables, split, config)
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        different = [name for name, value in wanted.items() if found.get(name) != value]
        if different:
            raise CacheError(
                f"cache {folder} was made with another {', '.join(different)}: "
                f"{'; '.join(f'{found.get(name)} instead of {wanted[name]}' for name in different)}. "
                "Choose another folder, or delete this one"
            )
        return SampleCache(folder)
    scenes = scenes_of_split(tables, split)
    with new_folder(folder, lambda _: False) as work:
        _build(tables, scenes, config, work, wanted, progress, threads)
    return SampleCache(folder)


def _identity(tables: Tables, split: str, config: CacheConfig) -> dict[str, Any]:
    """What must be equal for a cache to be used; content, not times, so that a copied root still fits."""
    digest = hashlib.sha256()
    folder = tables.dataroot / tables.version
    for file in sorted(folder.glob("*.json")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    for name in ("scene", "sample"):
        digest.update(json.dumps(list(tables.rows(name))).encode())
    identity = {
        "version": tables.version,
        "split": split,
        "config": asdict(config),
        "tables": digest.hexdigest()[:16],
    }
    if config.pictures == "files":
        identity["dataroot"] = str(tables.dataroot.resolve())
    return identity


def _build(
    tables: Tables,
    scenes: list[str],
    config: CacheConfig,
    work: Path,
    identity: dict[str, Any],
    progress: Progress,
    threads: int,
) -> None:
    with ExitStack() as stack:
        writer = _Writer(work, stack, _hazard_kinds(tables))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for number, name in enumerate(scenes):
            progress(number, len(scenes))
            can = read_motion(tables.dataroot, name)
            writer.missing["scenes without CAN bus"] += can is None
            scene = load_scene(tables, name)
            described = scene_samples(scene, can, config.sweeps)
            writer.add_views(number, scene, described, tables.dataroot)
            if config.pictures == "raw":
                for pictures in _stored_pictures(scene, described, config, pool):
                    writer.add_pictures(pictures)
            for truth, view in zip(described.truths, described.view_of_truth, strict=True):
                writer.add_truth(truth, view, tables.dataroot)
        progress(len(scenes), len(scenes))
        writer.finish()
    manifest = {
        "format": FORMAT,
        **identity,
        "scenes": scenes,
        "tokens": writer.tokens,
        "hazards": writer.hazard_kinds,
        "missing": {what: count for what, count in sorted(writer.missing.items()) if count},
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _hazard_kinds(tables: Tables) -> list[str]:
    if not tables.has("events"):
        return []
    return sorted({row["kind"] for row in tables.rows("events").values()})


def _stored_pictures(
    scene: Scene, described: SceneSamples, config: CacheConfig, pool: ThreadPoolExecutor
) -> Iterator[NDArray[np.uint8]]:
    """(N, H, W, 3) for each camera set: scaled to the network's width, nothing cut off."""
    sizes = {(camera.height_px, camera.width_px) for camera in scene.cameras.values()}
    stored = {fit(size, config.size_px).resized_px for size in sizes}
    if len(stored) != 1:
        raise CacheError(
            f"the cameras of {scene.name} have different shapes ({sorted(sizes)} px), which one array "
            'can\'t hold; use pictures="files"'
        )
    [stored_px] = stored

    def load(frame: Frame | None) -> NDArray[np.uint8]:
        if frame is None:
            return np.zeros((*stored_px, 3), np.uint8)
        calibration = scene.cameras[frame.sensor]
        source_px = (calibration.height_px, calibration.width_px)
        return fit(source_px, stored_px).load(read_picture(frame.file, frame.sensor, frame.stamp_ns))

    for view in described.views:
        yield np.stack(list(pool.map(load, view.frames)))


class _Writer:
    """Appends to array files, so that a split never lies in memory."""

    def __init__(self, folder: Path, stack: ExitStack, hazard_kinds: list[str]) -> None:
        self.hazard_kinds = hazard_kinds
        self.tokens: list[str] = []
        self.missing: Counter[str] = Counter()
        self._folder = folder
        self._stack = stack
        self._arrays: dict[Path, _ArrayFile] = {}
        self._files: list[list[str]] = []
        self._ends = Counter[str]()

    def add_pictures(self, pictures: NDArray[np.uint8]) -> None:
        """(N, H, W, 3) of the next camera set."""
        self._extend(self._folder / "pictures.npy", pictures[None])

    def add_views(self, number: int, scene: Scene, described: SceneSamples, dataroot: Path) -> None:
        sizes = [
            (scene.cameras[name].height_px, scene.cameras[name].width_px) if name in scene.cameras else (1, 1)
            for name in CAMERA_NAMES
        ]
        self._first_view = len(self._files)
        for view in described.views:
            self._row(
                Views,
                t0_ns=view.t0_ns,
                scene=number,
                source_from_odom=view.source_from_odom,
                odom_from_base=view.odom_from_base,
                valid=view.valid,
                source_px=sizes,
            )
            self.missing["pictures"] += int((~view.valid).sum())
            self._files.append(
                [str(frame.file.relative_to(dataroot)) if frame else "" for frame in view.frames]
            )

    def add_truth(self, truth: Truth, view: int, dataroot: Path) -> None:
        """A sample of the scene whose views were added last."""
        self.tokens.append(truth.token)
        agents = truth.agents
        self._flat("agent_poses", agents.poses)
        self._flat("agent_valid", agents.valid)
        self._flat("agent_sizes_m", agents.sizes_m)
        self._flat("agent_kinds", agents.kinds)
        labeled = self._add_label(truth, dataroot)
        self._add_language(truth, dataroot)
        ego = truth.ego
        self._row(
            Truths,
            t0_ns=truth.t0_ns,
            view=self._first_view + view,
            ego_motion=(ego.speed_mps, ego.acceleration_mps2, ego.yaw_rate_radps, ego.steering_rad),
            ego_past=ego.past_poses,
            ego_valid=(ego.motion_valid, ego.steering_valid, *ego.past_valid),
            command=np.uint8(truth.command),
            routed=truth.command_source == "route",
            hazards=np.uint32(sum(1 << self.hazard_kinds.index(kind) for kind in set(truth.hazards))),
            needs_sight=truth.needs_sight,
            future=truth.future,
            future_valid=truth.future_valid,
            base_from_label=truth.base_from_label,
            agent_end=self._ends["agent_poses"],
            voxel_end=self._ends["voxel_index"],
            language_end=self._ends["language"],
            labeled=labeled,
        )

    def finish(self) -> None:
        """Write the headers, which say how many rows there are."""
        for array in self._arrays.values():
            array.finish()
        (self._folder / "files.json").write_text(json.dumps(self._files))

    def _add_label(self, truth: Truth, dataroot: Path) -> bool:
        file = label_file(dataroot, truth.scene, truth.token)
        masks = np.zeros((1, 2, VOXELS // 8), np.uint8)
        index = np.zeros(0, np.uint32)
        classes = np.zeros(0, np.uint8)
        labeled = file.exists()
        if labeled:
            label = read_label(file)
            flat = label.semantics.ravel()
            index = np.flatnonzero(flat != FREE_CLASS).astype(np.uint32)
            classes = flat[index]
            masks[0] = np.packbits([label.camera_mask.ravel(), label.lidar_mask.ravel()], axis=1)
        self.missing["samples without occupancy label"] += not labeled
        self._flat("voxel_index", index)
        self._flat("voxel_class", classes)
        self._flat("masks", masks)
        return labeled

    def _add_language(self, truth: Truth, dataroot: Path) -> None:
        language = read_language(dataroot, truth.token)
        self.missing["samples without language"] += language.empty
        self._flat("language", np.frombuffer(json.dumps(asdict(language)).encode(), np.uint8))

    def _flat(self, name: str, rows: NDArray[Any]) -> None:
        self._extend(array_file(self._folder, Flat, name), rows)
        self._ends[name] += len(rows)

    def _row(self, group: type, **values: Any) -> None:
        for name, value in values.items():
            self._extend(array_file(self._folder, group, name), np.asarray(value)[None])

    def _extend(self, file: Path, rows: NDArray[Any]) -> None:
        if file not in self._arrays:
            handle = self._stack.enter_context(file.open("wb"))
            self._arrays[file] = _ArrayFile(handle, rows)
        self._arrays[file].extend(rows)


class _ArrayFile:
    """A .npy file that grows by rows; its header is written last, into room left for it."""

    def __init__(self, handle: BinaryIO, like: NDArray[Any]) -> None:
        self._handle = handle
        self._dtype, self._row_shape, self._rows = like.dtype, like.shape[1:], 0
        self._write_header(2**62)  # as long as a header can get
        self._data_start = handle.tell()

    def extend(self, rows: NDArray[Any]) -> None:
        self._handle.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._rows += len(rows)

    def finish(self) -> None:
        self._handle.seek(0)
        self._write_header(self._rows)
        if self._handle.tell() != self._data_start:
            raise AssertionError("the header of an array changed its length")

    def _write_header(self, rows: int) -> None:
        np.lib.format.write_array_header_1_0(
            self._handle,
            {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._row_shape)},
        )
