"""Cause and effect: edited pictures are those of the root but for the edit, and changes are counted right."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.effects import Effect, _WorldScene, effect_figures, find_effects
from sparseoccvla.world.edits import Edit, EditKind
from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import Request, RootOptions
from tests.evaluation_stand_ins import make_labeled_root, open_val, perfect_models


def plan(step_m):
    return [[step_m * k, 0.0, 0.0] for k in range(1, 7)]


def test_shares_are_of_plans_whose_farthest_waypoint_moves():
    effects = [
        Effect("a", "pedestrian", "colors", plan(1.0), plan(2.0), plan(1.0)),  # 6 m and nothing
        Effect("b", "pedestrian", "hour", plan(1.0), plan(1.1), plan(1.3)),  # 0.6 m and 1.8 m
    ]
    figures = effect_figures(effects)
    assert figures["hazard_removed"] == {"0.5m": 1.0, "1m": 0.5, "2m": 0.5}
    assert figures["irrelevant"] == {"0.5m": 0.5, "1m": 0.5, "2m": 0.0}
    assert figures["mean_farther_at_3s_m"] == pytest.approx((6 + 0.6) / 2)
    assert figures["hazard_removed_by_kind"] == {"pedestrian": {"n": 2, "changed": 0.5}}
    assert figures["irrelevant_by_kind"]["colors"] == {"n": 1, "changed": 0.0}
    assert effect_figures([]) == {"n": 0}


def test_only_the_world_can_be_edited(tmp_path):
    root = make_labeled_root(tmp_path / "root")
    cache = open_val(root, tmp_path / "cache")
    with pytest.raises(InputError, match="is no generated root"):
        find_effects(perfect_models(cache), cache, root, tmp_path / "e", len(cache), 5, 0, lambda _: None)


@pytest.mark.slow
def test_pictures_without_an_edit_are_those_of_the_root(tmp_path):
    root = tmp_path / "root"
    generate(
        root, RootOptions(352, 128, 2.0, pixel_stride=0, lidar=False), Request("rightville", "val", 3, 1)
    )
    cache = open_cache(
        Tables(root), "val", CacheConfig(height_px=128, width_px=352, pictures="files"), Path(tmp_path / "c")
    )
    [entry] = json.loads((root / "world.json").read_bytes())["scenes"].values()
    indices = list(range(len(cache)))
    world = _WorldScene(entry["city"], entry["world_seed"], (352, 128), cache, indices)
    [stored] = cache.history(2)
    again = world.inputs(2, None)
    assert np.array_equal(again.images_rgb, stored.images_rgb)
    assert np.array_equal(again.image_from_odom, stored.image_from_odom)
    edited = world.inputs(2, Edit(EditKind.COLORS, "5"))
    assert not np.array_equal(edited.images_rgb, stored.images_rgb)
    assert world.frames(2, 2) == [2, 1]
