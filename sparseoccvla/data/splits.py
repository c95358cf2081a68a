"""Which scenes belong to which split."""

from __future__ import annotations

import json
from importlib.util import find_spec

from sparseoccvla.data.tables import DataSetError, Tables


def scenes_of_split(tables: Tables, split: str) -> list[str]:
    """Names of the scenes of a split that the tables have, in the order of the split.

    A root with splits.json in its version folder, as generated ones have, says it itself; the official
    lists of nuScenes are those of nuscenes-devkit, which only such roots need.

    Raises:
        DataSetError: unknown split, no scene of it, or nuscenes-devkit is needed and absent.
    """
    splits = _own_splits(tables) or _official_splits(tables)
    if split not in splits:
        raise DataSetError(
            f"{tables.dataroot} ({tables.version}) has no split {split!r}, choose from "
            f"{', '.join(sorted(splits))}"
        )
    present = {row["name"] for row in tables.rows("scene").values()}
    scenes = [name for name in splits[split] if name in present]
    if not scenes:
        raise DataSetError(
            f"none of the {len(splits[split])} scenes of split {split!r} is in {tables.dataroot} "
            f"({tables.version}), which has {len(present)}; is this the right version?"
        )
    return scenes


def _own_splits(tables: Tables) -> dict[str, list[str]]:
    file = tables.dataroot / tables.version / "splits.json"
    if not file.exists():
        return {}
    try:
        return {
            str(name): [str(scene) for scene in scenes]
            for name, scenes in json.loads(file.read_bytes()).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise DataSetError(f"{file} is damaged ({error}); wanted split -> list of scene names") from error


def _official_splits(tables: Tables) -> dict[str, list[str]]:
    if find_spec("nuscenes") is None:
        raise DataSetError(
            f"{tables.dataroot / tables.version} has no splits.json, so the official splits of nuScenes "
            "are needed: pip install nuscenes-devkit"
        )
    from nuscenes.utils.splits import create_splits_scenes

    return dict(create_splits_scenes())
