"""Batches of camera sets with their labels, made ahead of time by threads.

What is in a batch depends on the seed, the step and the place in the batch only: not on how many
threads or processes make it, nor on whether training was interrupted.

Dimension legend:
    B batch    T frames    N cameras    H W of a picture    h w of the finest feature level
    M occupied voxels of a sample
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID, EncoderInput
from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import VOXELS, SampleCache
from sparseoccvla.data.occ3d import OccupancyLabel
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse
from sparseoccvla.training.losses import OccupancyTarget
from sparseoccvla.training.pixels import pixels_of_voxels, stored_pixels

_AHEAD = 3  # batches made before they are asked for


class NetworkInputs(NamedTuple):
    """What the encoder takes, for one sample or a batch."""

    images_rgb: Tensor  # ([B,] T, N, 3, H, W) uint8
    image_from_base: Tensor  # ([B,] T, N, 4, 4) fp32
    base_from_image: Tensor  # ([B,] N, 4, 4) fp32
    valid: Tensor  # ([B,] T, N) fp32


@dataclass(frozen=True)
class SceneBatch:
    """Camera sets and their labels."""

    inputs: NetworkInputs
    targets: list[OccupancyTarget]
    pixel_classes: Tensor  # (B, N, h, w) 0..16, FREE_CLASS for sky, IGNORE
    pixel_depth_m: Tensor  # (B, N, h, w), 0 where unknown
    seeds: list[int]  # of each sample's random draws

    def to(self, device: torch.device) -> SceneBatch:
        """The batch on a device."""
        if device.type == "cpu":
            for target in self.targets:
                _ = target.neighbors.tree  # made where batches are made, not where training waits
            return self
        return SceneBatch(
            NetworkInputs(*(tensor.to(device, non_blocking=True) for tensor in self.inputs)),
            [target.to(device) for target in self.targets],
            self.pixel_classes.to(device),
            self.pixel_depth_m.to(device),
            self.seeds,
        )


class SceneLoader:
    """Makes the batches of one process.

    Args:
        cache: of the training split.
        dataroot: that it was made from.
        frames: T of the encoder.
        stride_px: of the encoder's finest level.
        repeat_history: of the encoder; see `network_inputs`.
        augmentation: None to see every picture as it is.
        seed: of the run.
    """

    def __init__(
        self,
        cache: SampleCache,
        dataroot: Path,
        frames: int,
        stride_px: int,
        repeat_history: bool,
        augmentation: AugmentationConfig | None,
        seed: int,
    ) -> None:
        self._cache = cache
        self._dataroot = dataroot
        self._frames = frames
        self._stride_px = stride_px
        self._repeat_history = repeat_history
        self._augmentation = augmentation
        self._seed = seed

    def batch(self, places: Sequence[tuple[int, int]]) -> SceneBatch:
        """The batch of (position in the run, sample) pairs."""
        parts = [self._sample(position, index) for position, index in places]
        return SceneBatch(
            NetworkInputs(
                *(torch.stack(part) for part in zip(*(inputs for inputs, *_ in parts), strict=True))
            ),
            [target for _, target, _, _ in parts],
            torch.stack([classes for _, _, classes, _ in parts]),
            torch.stack([depth for *_, depth in parts]),
            [draw_seed(self._seed, position) for position, _ in places],
        )

    def _sample(self, position: int, index: int) -> tuple[NetworkInputs, OccupancyTarget, Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, position])
        label = self._cache.occupancy(index)
        truth = self._cache.truth(index)
        if label is None:
            raise InputError(
                f"sample {truth.token} of scene {truth.scene} has no occupancy label, and encoder training "
                "needs one for every keyframe; unpack or generate gts/ for the whole split"
            )
        history = self._cache.history(index, self._frames, self._augmentation, rng)
        inputs = network_inputs(history, self._repeat_history)
        target = occupancy_target(label, truth.base_from_label)
        assert history[0] is not None
        pixels = stored_pixels(self._dataroot, *self._cache.source(index), history[0], self._stride_px)
        if pixels is None:
            pixels = pixels_of_voxels(
                target,
                inputs.image_from_base[0],
                inputs.valid[0],
                self._cache.config.size_px,
                self._stride_px,
            )
        return inputs, target, *pixels


def network_inputs(history: Sequence[EncoderInput | None], repeat_history: bool) -> NetworkInputs:
    """Tensors of the history frames, newest first, as the torch backend makes them while driving.

    A missing frame borrows the next newer one; unless `repeat_history` none of its cameras is valid.
    """
    newest = history[0]
    if newest is None:
        raise ValueError("the history has no newest frame")
    used = [newest]
    for frame in history[1:]:
        used.append(frame or used[-1])
    valid = np.stack([frame.valid for frame in used])
    if not repeat_history:
        valid &= np.array([frame is not None for frame in history])[:, None]
    image_from_base = np.stack([frame.image_from_odom for frame in used]) @ newest.odom_from_base
    return NetworkInputs(
        torch.from_numpy(np.stack([frame.images_rgb for frame in used])).permute(0, 1, 4, 2, 3),
        torch.from_numpy(image_from_base).float(),
        torch.from_numpy(np.linalg.inv(image_from_base[0])).float(),
        torch.from_numpy(valid).float(),
    )


def occupancy_target(label: OccupancyLabel, base_from_label: NDArray[np.float64]) -> OccupancyTarget:
    """What the losses want of a label."""
    semantics = label.semantics.ravel()
    occupied = np.flatnonzero(semantics != FREE_CLASS)
    return OccupancyTarget(
        torch.from_numpy(_CENTERS_M[occupied]),
        torch.from_numpy(semantics[occupied]),
        torch.from_numpy(label.camera_mask.ravel()[occupied]),
        torch.from_numpy(inverse(base_from_label)).float(),
    )


_CENTERS_M: NDArray[np.float32] = OCC3D_GRID.centers_m(
    np.indices(OCC3D_GRID.shape).reshape(3, VOXELS).T
).astype(np.float32)


def draw_seed(seed: int, position: int) -> int:
    """Seed of the random draws that belong to one sample of a run."""
    return int(np.random.SeedSequence([seed, position, 1]).generate_state(1)[0])


def places_of_step(
    step: int, batch: int, samples: int, seed: int, process: int = 0, processes: int = 1
) -> list[tuple[int, int]]:
    """(position in the run, sample) of one process's share of a step.

    The run walks through one random order of all samples after another; a batch may span two.
    """
    share = batch // processes
    first = step * batch + process * share
    places = []
    for position in range(first, first + share):
        epoch, within = divmod(position, samples)
        order = np.random.default_rng([seed, epoch, 2]).permutation(samples)
        places.append((position, int(order[within])))
    return places


def made_ahead[Batch](make: Callable[[int], Batch], first_step: int, threads: int) -> Iterator[Batch]:
    """`make(step)` for every step from `first_step` on, in order, some of them made ahead by threads.

    Threads, not processes: pictures are mapped, and what takes time in numpy, cv2 and scipy releases
    the interpreter's lock.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        pending: list[Future[Batch]] = []
        try:
            for step in count(first_step):
                pending.append(pool.submit(make, step))
                if len(pending) > _AHEAD:
                    yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


class _Steps[Batch](Dataset[Batch]):
    """Batches by step, for workers."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Batch:
        return self._make(step)


def made_by_workers[Batch](make: Callable[[int], Batch], first_step: int, workers: int) -> Iterator[Batch]:
    """`make(step)` for every step from `first_step` on, in order, by processes: a GPU takes hundreds of
    samples a second, and threads share one interpreter with the loop that feeds it.

    Batches come in memory that is shared, on the CPU.
    """
    # Every tensor of a waiting batch is an open file, and the usual limit is a thousand.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    steps: Any = count(first_step)  # any iterable will do, whatever the annotation says
    yield from DataLoader(
        _Steps(make),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_is,
        multiprocessing_context="fork",  # `make` is a function of this process
    )


def _as_is[Batch](batch: Batch) -> Batch:
    return batch
