"""nuScenes tables as they lie on disk: real data sets and generated ones, read the same way.

nuscenes-devkit reads them too, but pins numpy below 2 and builds indices that nothing here asks for;
tests compare this reader with it. Quaternions are (w, x, y, z) in the tables and (x, y, z, w)
everywhere else: `pose_matrix` is the border.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError
from sparseoccvla.geometry import matrix_from_pose

Row = Mapping[str, Any]

LIDAR_CHANNEL = "LIDAR_TOP"


class DataSetError(InputError):
    """A data set can't be read; the text names file or row, what came, what was wanted, what to do."""


class Tables:
    """The tables of one version of a data set; each file is read when it is first needed.

    Args:
        dataroot: folder that holds samples/, sweeps/ and the version folder.
        version: e.g. "v1.0-trainval"; None when the root has only one.

    Raises:
        DataSetError: no such folder or version, or several versions and none chosen.
    """

    def __init__(self, dataroot: Path, version: str | None = None) -> None:
        self.dataroot = dataroot
        self.version = _choose_version(dataroot, version)
        self._loaded: dict[str, dict[str, Row]] = {}

    def rows(self, table: str) -> dict[str, Row]:
        """All rows of a table by token, in the order of the file."""
        if table not in self._loaded:
            self._loaded[table] = self._read(table)
        return self._loaded[table]

    def has(self, table: str) -> bool:
        """Whether the version has this table at all; only those beyond nuScenes may be absent."""
        return table in self._loaded or self._file(table).exists()

    def get(self, table: str, token: str, asked_by: str) -> Row:
        """One row; `asked_by` says in the error who refers to it."""
        row = self.rows(table).get(token)
        if row is None:
            raise DataSetError(
                f"{asked_by} refers to {table} {token!r}, which {self._file(table)} does not have; "
                "the tables don't belong together"
            )
        return row

    def scene(self, name: str) -> Row:
        """The scene of that name."""
        scenes = {row["name"]: row for row in self.rows("scene").values()}
        if name not in scenes:
            known = sorted(scenes)
            shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise DataSetError(
                f"{self.dataroot} ({self.version}) has no scene {name!r}, it has {shown or 'none'}"
            )
        return scenes[name]

    def samples_of(self, scene: Row) -> list[Row]:
        """Keyframes of a scene in time order."""
        samples, token = [], scene["first_sample_token"]
        while token:
            sample = self.get("sample", token, f"scene {scene['name']}")
            samples.append(sample)
            token = sample["next"]
        if not samples:
            raise DataSetError(f"scene {scene['name']} of {self.dataroot} has no sample")
        return samples

    @cached_property
    def data_of_sample(self) -> dict[str, list[Row]]:
        """Sample token -> its sample_data rows, sweeps included."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows("sample_data").values():
            found[row["sample_token"]].append(row)
        return found

    @cached_property
    def boxes_of_sample(self) -> dict[str, list[Row]]:
        """Sample token -> its sample_annotation rows."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows("sample_annotation").values():
            found[row["sample_token"]].append(row)
        return found

    def channel_of(self, sample_data: Row) -> tuple[str, Row]:
        """Sensor channel, e.g. "CAM_FRONT", and calibrated_sensor row of a sample_data row."""
        who = f"sample_data {sample_data['token']}"
        calibrated = self.get("calibrated_sensor", sample_data["calibrated_sensor_token"], who)
        sensor = self.get("sensor", calibrated["sensor_token"], f"calibrated_sensor {calibrated['token']}")
        return sensor["channel"], calibrated

    def _file(self, table: str) -> Path:
        return self.dataroot / self.version / f"{table}.json"

    def _read(self, table: str) -> dict[str, Row]:
        file = self._file(table)
        try:
            rows = json.loads(file.read_bytes())
            return {row["token"]: row for row in rows}
        except FileNotFoundError as error:
            raise DataSetError(
                f"table {file} is missing; wanted a complete nuScenes data set, as the download or "
                "`sparseoccvla world generate` leaves it"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataSetError(f"table {file} is damaged ({error}); wanted a JSON list of rows") from error


def pose_matrix(row: Row) -> NDArray[np.float64]:
    """4x4 of a row with translation [m] and rotation (w, x, y, z)."""
    w, x, y, z = row["rotation"]
    return matrix_from_pose(row["translation"], (x, y, z, w))


def _choose_version(dataroot: Path, version: str | None) -> str:
    if not dataroot.is_dir():
        raise DataSetError(f"there is no data set at {dataroot}; give the folder that holds samples/")
    found = sorted(file.parent.name for file in dataroot.glob("*/scene.json"))
    if version is None and len(found) == 1:
        return found[0]
    if version in found:
        assert version is not None
        return version
    if not found:
        raise DataSetError(
            f"{dataroot} has no tables: wanted a folder such as v1.0-mini/ with scene.json and 12 more; "
            "unpack the metadata of nuScenes there, or generate a data set"
        )
    raise DataSetError(
        f"{dataroot} has {'several versions' if version is None else f'no version {version!r}'}: "
        f"{', '.join(found)}; choose one with --version"
    )
