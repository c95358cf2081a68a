"""Crops of pictures with captions: what a teacher of distillation learns from.

A crop is a square around an annotated thing in sight, or around a picture cell of a class drawn at random
where the data set stores the classes of pixels. Its caption names class, color where the tables know it,
and distance.

Dimension legend:
    n crops    S side of a crop    L tokens of a caption    N cameras    h w cells of a picture
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.contracts import CAMERA_NAMES, CLASS_NAMES, FREE_CLASS, NUM_CLASSES, EncoderInput
from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.categories import class_of_category
from sparseoccvla.data.scene import Keyframe, load_scene
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import inverse, transform
from sparseoccvla.training.pixels import stored_pixels
from sparseoccvla.world.language_closed import PAINTED
from sparseoccvla.world.language_words import a

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CELL_PX = 4
_REACH_M = 40.0  # nothing farther away is in the occupancy grid
_NEAREST_M = 0.5  # depth at which a box is cut by the picture's plane
_LEAST_PX = 12.0  # longer side of a thing
_MARGIN = 1.3  # of a crop around a thing
_IN_SIGHT = 0.3  # of a box's outline, least share of cells that show it
_VISIBILITY = 3  # without stored pixels: 60 % and more are seen
_SIDES = (0.25, 0.75)  # of crops around a cell, of the picture's height
_NAMED = 0.2  # least share of a crop's cells for its class to be named
_STEP_M = 5  # of distances in captions
_OTHERS = CLASS_NAMES.index("others")
_CORNERS = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), axis=-1).reshape(8, 3)

Cells = tuple[NDArray[np.uint8], NDArray[np.float32]]  # class and depth in meters, (N, h, w) each


@dataclass(frozen=True)
class Crop:
    """A square of one camera's picture."""

    camera: int
    left_px: int
    top_px: int
    side_px: int
    caption: str


@dataclass(frozen=True)
class CropBatch:
    """Pictures and tokens of their captions."""

    images_rgb: Tensor  # (n, 3, S, S) uint8
    ids: Tensor  # (n, L) int64

    def to(self, device: torch.device) -> CropBatch:
        """The batch on a device."""
        return CropBatch(self.images_rgb.to(device), self.ids.to(device))


class CropSource:
    """Cuts crops from the keyframes of a split.

    Args:
        cache: of the split.
        tables: of the data set that it was made from.
        size_px: S.
        many: crops of a keyframe; half of them show things where the data set stores pixels.
        augmentation: of pictures; None to see them as they are.
    """

    def __init__(
        self,
        cache: SampleCache,
        tables: Tables,
        size_px: int,
        many: int,
        augmentation: AugmentationConfig | None,
    ) -> None:
        self._cache, self._tables = cache, tables
        self._size_px, self._many = size_px, many
        self._augmentation = augmentation
        self._keyframes = lru_cache(maxsize=None)(self._keyframes_of)

    def __len__(self) -> int:
        return len(self._cache)

    def pairs(self, index: int, rng: np.random.Generator) -> list[tuple[NDArray[np.uint8], str]]:
        """Crops (S, S, 3) of a keyframe and their captions; one without any lends those of the next.

        Raises:
            InputError: no keyframe of the split has any.
        """
        for step in range(len(self._cache)):
            found = self._pairs((index + step) % len(self._cache), rng)
            if found:
                return found
        raise InputError(
            f"split {self._cache.manifest['split']} has nothing to caption: no annotated box within "
            f"{_REACH_M:g} m is in sight, and there are no semantics/; generate it with both"
        )

    def _pairs(self, index: int, rng: np.random.Generator) -> list[tuple[NDArray[np.uint8], str]]:
        [seen] = self._cache.history(index, 1, self._augmentation, rng)
        assert seen is not None
        pixels = stored_pixels(self._tables.dataroot, *self._cache.source(index), seen, _CELL_PX)
        cells = None if pixels is None else (pixels[0].numpy(), pixels[1].numpy())
        crops = list(self._things(index, seen, cells))
        rng.shuffle(crops)  # type: ignore[arg-type]
        if cells is not None:
            del crops[self._many // 2 :]
            around = (_around_a_cell(seen, cells, rng) for _ in range(self._many - len(crops)))
            crops += [crop for crop in around if crop is not None]
        return [(self._cut(seen, crop), crop.caption) for crop in crops[: self._many]]

    def _things(self, index: int, seen: EncoderInput, cells: Cells | None) -> Iterator[Crop]:
        """A crop for each picture of each annotated thing that is near, large enough and in sight."""
        truth = self._cache.truth(index)
        keyframe = self._keyframes(truth.scene)[truth.token]
        base_from_global = inverse(keyframe.frames[CAMERA_NAMES[0]].global_from_base)
        kinds = [class_of_category(box.category) for box in keyframe.boxes]
        boxes = [box for box, kind in zip(keyframe.boxes, kinds, strict=True) if kind != _OTHERS]
        if not boxes:
            return
        corners_m = np.stack(
            [
                transform(base_from_global @ box.global_from_box, _CORNERS * box.length_width_height_m)
                for box in boxes
            ]
        )  # (boxes, 8, 3)
        away_m = np.hypot(*corners_m.mean(axis=1)[:, :2].T)
        image_from_base = seen.image_from_odom @ seen.odom_from_base
        projected = np.einsum("cij,bkj->cbki", image_from_base[:, :3, :3], corners_m)
        projected += image_from_base[:, None, None, :3, 3]
        depth_m = projected[..., 2]  # (N, boxes, 8)
        corners_px = projected[..., :2] / np.maximum(depth_m, _NEAREST_M)[..., None]
        low_px, high_px = corners_px.min(axis=2), corners_px.max(axis=2)
        middle_px = (low_px + high_px) / 2
        shown = (depth_m.min(axis=2) > _NEAREST_M) & (away_m < _REACH_M) & seen.valid[:, None]
        shown &= (middle_px > 0).all(axis=2) & (middle_px < seen.images_rgb.shape[2:0:-1]).all(axis=2)
        shown &= (high_px - low_px).max(axis=2) > _LEAST_PX
        for camera, number in np.argwhere(shown):
            box, low, high = boxes[number], low_px[camera, number], high_px[camera, number]
            kind = class_of_category(box.category)
            if cells is None:
                in_sight = box.visibility >= _VISIBILITY
            else:
                reach_m = max(box.length_width_height_m) / 2 + 1
                is_thing = cells[0][camera] == kind
                is_thing &= np.abs(cells[1][camera] - depth_m[camera, number].mean()) < reach_m
                in_sight = _window(is_thing, low, high).mean() > _IN_SIGHT
            if in_sight:
                yield _square(
                    seen,
                    camera,
                    middle_px[camera, number],
                    max(_MARGIN * (high - low).max(), self._size_px / 2),
                    _caption(a(self._words(box.instance, kind)), away_m[number]),
                )

    def _words(self, instance: str, kind: int) -> str:
        """Color, where the tables know one that is seen from all sides, and class."""
        name = _name(kind)
        color = self._tables.rows("instance")[instance].get("color", "") if name in PAINTED else ""
        return f"{color} {name}".strip()

    def _cut(self, seen: EncoderInput, crop: Crop) -> NDArray[np.uint8]:
        rows, columns = (slice(first, first + crop.side_px) for first in (crop.top_px, crop.left_px))
        method = cv2.INTER_AREA if crop.side_px > self._size_px else cv2.INTER_LINEAR
        cut = cv2.resize(
            seen.images_rgb[crop.camera, rows, columns], (self._size_px,) * 2, interpolation=method
        )
        return cut.astype(np.uint8, copy=False)

    def _keyframes_of(self, scene: str) -> dict[str, Keyframe]:
        return {keyframe.token: keyframe for keyframe in load_scene(self._tables, scene).keyframes}


def _around_a_cell(seen: EncoderInput, cells: Cells, rng: np.random.Generator) -> Crop | None:
    """A crop around a cell of a class that is in the pictures, each class as likely as the others."""
    classes, depth_m = cells
    present = np.unique(classes[classes < FREE_CLASS])
    if not len(present):
        return None
    camera, row, column = rng.choice(np.argwhere(classes == rng.choice(present)))
    height = seen.images_rgb.shape[1]
    middle_px = (np.array([column, row]) + 0.5) * _CELL_PX
    square = _square(seen, int(camera), middle_px, rng.uniform(*_SIDES) * height, "")
    low_px = np.array([square.left_px, square.top_px], float)
    high_px = low_px + float(square.side_px)
    inside = _window(classes[camera], low_px, high_px)
    counts = np.bincount(inside[inside < FREE_CLASS], minlength=NUM_CLASSES)
    named = [kind for kind in np.argsort(-counts, kind="stable")[:2] if counts[kind] > _NAMED * inside.size]
    if not named:
        return None
    away_m = np.median(_window(depth_m[camera], low_px, high_px)[inside == named[0]])
    caption = _caption(" and ".join(_name(kind) for kind in named), float(away_m))
    return replace(square, caption=caption)


def _window[Value: np.generic](
    of: NDArray[Value], low_px: NDArray[np.floating], high_px: NDArray[np.floating]
) -> NDArray[Value]:
    """Cells (h, w) between two corners (u, v), at least one."""
    (left, top), (right, bottom) = (np.maximum(corner, 0) // _CELL_PX for corner in (low_px, high_px))
    return of[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)]


def _square(
    seen: EncoderInput, camera: int, middle_px: NDArray[np.floating], side_px: float, caption: str
) -> Crop:
    """The square around a place (u, v), moved and shrunk until the picture holds it."""
    _, height, width, _ = seen.images_rgb.shape
    side = int(min(side_px, height, width))
    left, top = np.clip(middle_px - side / 2, 0, [width - side, height - side]).astype(int).tolist()
    return Crop(camera, left, top, side, caption)


def _caption(words: str, away_m: float) -> str:
    return f"{words}, about {max(_STEP_M, _STEP_M * round(away_m / _STEP_M))} meters away"


def named_in(caption: str) -> str:
    """What a caption names, without how far it is."""
    return caption.split(",")[0]


def _name(kind: int) -> str:
    return CLASS_NAMES[kind].replace("_", " ")


class CropLoader:
    """Makes the batches of one process.

    Args:
        source: of the training split.
        words: tokenizer of captions, see `caption_tokenizer`.
        seed: of the run.
    """

    def __init__(self, source: CropSource, words: Tokenizer, seed: int) -> None:
        self._source, self._words, self._seed = source, words, seed

    def batch(self, places: Sequence[tuple[int, int]]) -> CropBatch:
        """The batch of (position in the run, keyframe) pairs."""
        pairs: list[tuple[NDArray[np.uint8], str]] = []
        for position, index in places:
            pairs += self._source.pairs(index, np.random.default_rng([self._seed, position, 7]))
        return crop_batch(pairs, self._words)


def crop_batch(pairs: Sequence[tuple[NDArray[np.uint8], str]], words: Tokenizer) -> CropBatch:
    """Tensors of crops (S, S, 3) and captions."""
    images = np.stack([image for image, _ in pairs])
    said = words.encode_batch([caption for _, caption in pairs])
    return CropBatch(
        torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([encoding.ids for encoding in said])
    )
