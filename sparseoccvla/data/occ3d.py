"""Occ3D-nuScenes labels, and how they get from the lidar's time to t0.

A label belongs to the keyframe's lidar time and its base_link. CAM_FRONT fires about 35 ms earlier:
at 10 m/s that is nearly a whole voxel. Predictions are made in base_link at t0, so labels are moved
there **rigidly, by the ego motion in between**. What other road users do in those 35 ms (0.5 m at
15 m/s) is not undone; nobody knows which voxel moves how.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID
from sparseoccvla.data.tables import DataSetError
from sparseoccvla.geometry import inverse, transform

SHAPE = OCC3D_GRID.shape
_FIELDS = ("semantics", "mask_lidar", "mask_camera")


@dataclass(frozen=True)
class OccupancyLabel:
    """Classes and what was observed, in base_link at the label's own time; axes x, y, z."""

    semantics: NDArray[np.uint8]  # (200, 200, 16), 17 is free
    camera_mask: NDArray[np.bool_]  # (200, 200, 16) seen by a camera
    lidar_mask: NDArray[np.bool_]  # (200, 200, 16) seen by the lidar

    def points(
        self, target_from_label: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """Occupied voxels as exact points: (M, 3) centers in the target frame, (M,) class, (M,) seen."""
        indices = np.argwhere(self.semantics != FREE_CLASS)
        at = tuple(indices.T)
        centers = transform(target_from_label, OCC3D_GRID.centers_m(indices)).astype(np.float32)
        return centers, self.semantics[at], self.camera_mask[at]

    def moved(self, target_from_label: NDArray[np.floating]) -> OccupancyLabel:
        """The label on the grid of another frame: each voxel takes the one its center falls into.

        What comes from outside the grid is free and unseen.
        """
        indices = np.moveaxis(np.indices(SHAPE), 0, -1)
        centers = transform(inverse(target_from_label), OCC3D_GRID.centers_m(indices))
        source, inside = OCC3D_GRID.indices(centers)
        at = tuple(np.where(inside[..., None], source, 0).reshape(-1, 3).T)

        def take(values: NDArray, outside: int) -> NDArray:
            return np.where(inside, values[at].reshape(SHAPE), np.array(outside, values.dtype))

        return OccupancyLabel(
            take(self.semantics, FREE_CLASS), take(self.camera_mask, 0), take(self.lidar_mask, 0)
        )


def label_file(dataroot: Path, scene: str, sample_token: str) -> Path:
    """Where the label of a keyframe lies."""
    return dataroot / "gts" / scene / sample_token / "labels.npz"


def read_label(file: Path) -> OccupancyLabel:
    """Read and check a labels.npz.

    Raises:
        DataSetError: missing or damaged, another shape or type, or classes beyond 17.
    """
    wanted = f"wanted {', '.join(_FIELDS)} as uint8 {SHAPE} (Occ3D-nuScenes)"
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _FIELDS}
    except FileNotFoundError as error:
        raise DataSetError(f"occupancy label {file} is missing; unpack Occ3D's gts/ there") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataSetError(f"occupancy label {file} is damaged ({error}); {wanted}") from error
    for name, array in arrays.items():
        if array.shape != SHAPE or array.dtype != np.uint8:
            raise DataSetError(f"{name} of {file} is {array.dtype} {array.shape}; {wanted}")
    semantics, lidar_mask, camera_mask = (arrays[name] for name in _FIELDS)
    if int(semantics.max()) > FREE_CLASS:
        raise DataSetError(
            f"semantics of {file} holds class {int(semantics.max())}, wanted 0 to {FREE_CLASS}"
        )
    if int(max(lidar_mask.max(), camera_mask.max())) > 1:
        raise DataSetError(f"a mask of {file} holds values beyond 0 and 1")
    return OccupancyLabel(semantics, camera_mask.astype(bool), lidar_mask.astype(bool))
