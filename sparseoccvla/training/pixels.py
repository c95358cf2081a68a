"""Class and depth of picture cells: what the encoder's 2-D head learns from.

Generated data sets have them for every picture; where there are none, the nearest visible voxel in a cell
says both, sparsely.

Dimension legend:
    N cameras    h w cells of the finest feature level    M occupied voxels
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID, EncoderInput
from sparseoccvla.errors import InputError
from sparseoccvla.training.losses import IGNORE, OccupancyTarget
from sparseoccvla.world.writer import DEPTH_UNIT_M, pixel_files


def stored_pixels(
    dataroot: Path,
    files: list[str],
    source_from_odom: NDArray[np.float64],
    source_px: NDArray[np.int64],
    inputs: EncoderInput,
    stride_px: int,
) -> tuple[Tensor, Tensor] | None:
    """Class (N, h, w) uint8 and depth (N, h, w) in meters at the centers of cells of the network's pictures.

    What lies outside the occupancy grid is FREE_CLASS, like the sky: a query started there would be lost.

    Args:
        dataroot: of the data set.
        files: picture of each camera, "" where there is none.
        source_from_odom: (N, 4, 4) whose pixels are those of the files.
        source_px: (N, 2) height and width of the files.
        inputs: the network's pictures, however augmented.
        stride_px: of the cells.

    Returns:
        None where the data set stores no pixels.
    """
    cameras, height, width, _ = inputs.images_rgb.shape
    rows, columns = height // stride_px, width // stride_px
    v, u = np.mgrid[:rows, :columns]
    cell = np.stack([u + 0.5, v + 0.5]).reshape(2, -1) * stride_px  # (2, h*w) pixels of the network's picture
    homogeneous = np.concatenate([cell, np.ones((1, cell.shape[1]))])
    classes = np.full((cameras, rows * columns), IGNORE, np.uint8)
    depth_m = np.zeros((cameras, rows * columns), np.float32)
    for camera, file in enumerate(files):
        if not file or not inputs.valid[camera]:
            continue
        class_file, depth_file = (dataroot / name for name in pixel_files(file))
        if not class_file.exists():
            return None
        stored_classes, stored_depth = _read(class_file), _read(depth_file)
        # Both project the same point, so what lies between them moves pixels, whatever the depth.
        source_from_fitted = (
            source_from_odom[camera, :3, :3] @ np.linalg.inv(inputs.image_from_odom[camera])[:3, :3]
        )
        source = source_from_fitted @ homogeneous
        step = source_px[camera, 1] / stored_classes.shape[1]
        column, row = np.floor(source[:2] / source[2] / step).astype(int)
        inside = (column >= 0) & (column < stored_classes.shape[1]) & (row >= 0)
        inside &= row < stored_classes.shape[0]
        at = row[inside], column[inside]
        classes[camera, inside] = stored_classes[at]
        depth_m[camera, inside] = stored_depth[at] * DEPTH_UNIT_M
        base_from_image = np.linalg.inv(inputs.image_from_odom[camera] @ inputs.odom_from_base)
        rays = np.concatenate([homogeneous * depth_m[camera], np.ones((1, homogeneous.shape[1]))])
        points_m = (base_from_image @ rays)[:3].T
        beyond = (points_m < OCC3D_GRID.min_m).any(axis=1) | (points_m > OCC3D_GRID.max_m).any(axis=1)
        classes[camera, beyond & (classes[camera] != IGNORE)] = FREE_CLASS
    shape = (cameras, rows, columns)
    return torch.from_numpy(classes.reshape(shape)), torch.from_numpy(depth_m.reshape(shape))


def _read(file: Path) -> NDArray[np.generic]:
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2:
        raise InputError(f"{file} is missing or damaged, wanted a gray PNG; generate the data set again")
    return pixels


def pixels_of_voxels(
    target: OccupancyTarget, image_from_base: Tensor, valid: Tensor, size_px: tuple[int, int], stride_px: int
) -> tuple[Tensor, Tensor]:
    """Class (N, h, w) uint8 and depth (N, h, w) of cells from the nearest visible voxel in each.

    Sparse where a voxel is smaller than a cell; cells without one are IGNORE and 0.

    Args:
        target: of the sample.
        image_from_base: (N, 4, 4) of the network's pictures.
        valid: (N,) cameras that take part.
        size_px: (height, width) of the network's pictures.
        stride_px: of the cells.
    """
    base_from_label = torch.linalg.inv(target.label_from_base.double()).float()
    points_m = target.points_m[target.visible] @ base_from_label[:3, :3].T + base_from_label[:3, 3]
    labels = target.labels[target.visible]
    cameras, (rows, columns) = len(image_from_base), (side // stride_px for side in size_px)
    x, y, depth = (image_from_base[:, :3, :3] @ points_m.T + image_from_base[:, :3, 3:]).unbind(
        dim=1
    )  # (N, M)
    safe = depth.clamp(min=0.1) * stride_px
    column, row = (x / safe).floor().long(), (y / safe).floor().long()
    seen = (depth > 0.5) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    seen &= valid[:, None] > 0
    camera, voxel = seen.nonzero(as_tuple=True)
    cell = ((camera * rows + row[seen]) * columns + column[seen]).numpy()
    near = depth[seen].numpy()
    order = np.argsort(-near, kind="stable")  # far ones first: of equal cells the last written stays
    classes = np.full(cameras * rows * columns, IGNORE, np.uint8)
    depth_m = np.zeros(cameras * rows * columns, np.float32)
    classes[cell[order]] = labels[voxel].numpy()[order]
    depth_m[cell[order]] = near[order]
    shape = (cameras, rows, columns)
    return torch.from_numpy(classes).view(shape), torch.from_numpy(depth_m).view(shape)
