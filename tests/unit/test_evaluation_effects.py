"""Cause and effect: a plan with edited pictures is compared with the one without, and changes count right."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from sparseoccvla.data.edits import FOLDER, TABLE, edited_file
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.effects import Effect, chosen_edits, effect_figures, find_effects
from tests.evaluation_stand_ins import KEYFRAMES, make_labeled_root, open_val, perfect_models


def plan(step_m):
    return [[step_m * k, 0.0, 0.0] for k in range(1, 7)]


def effect(kind, removes, base_m, edited_m, seen=True, driven_m=1.0):
    return Effect("t", "e", kind, removes, seen, plan(base_m), plan(edited_m), plan(2.0), plan(driven_m))


def test_shares_are_of_plans_whose_farthest_waypoint_moves():
    figures = effect_figures(
        [
            effect("pedestrian", True, 1.0, 2.0),  # 6 m
            effect("cut_in", True, 1.0, 1.1),  # 0.6 m
            effect("cut_in", True, 1.0, 9.0, seen=False),  # nothing to see at t0
            effect("colors", False, 1.0, 1.0),
            effect("hour", False, 1.0, 1.3),  # 1.8 m
        ]
    )
    assert (figures["n"], figures["hidden"]) == (4, 1)
    assert figures["hazard_removed"]["changed"] == {"0.5m": 1.0, "1m": 0.5, "2m": 0.5}
    assert figures["irrelevant"]["changed"] == {"0.5m": 0.5, "1m": 0.5, "2m": 0.0}
    assert figures["hazard_removed"]["by_kind"]["cut_in"] == {"n": 1, "changed": 0.0}
    # The driver would go 2 m a step: 3.5 m off in the mean at 1 m a step.
    assert figures["off_m_with_hazard"] == pytest.approx(3.5)
    assert figures["off_m_without"] == pytest.approx((0 + 0.9 * 3.5) / 2)
    assert effect_figures([])["n"] == 0


def test_a_driver_who_would_do_the_same_is_told_apart():
    figures = effect_figures(
        [
            effect("pedestrian", True, 1.0, 2.0, driven_m=1.0),
            effect("pedestrian", True, 1.0, 1.0, driven_m=1.9),  # 0.6 m: brakes for something else as well
            effect("colors", False, 1.0, 1.0, driven_m=1.0),
        ]
    )
    assert figures["hazard_removed"]["changed"]["1m"] == 0.5
    assert figures["expert_changes"] == 0.5
    acted_on = figures["hazard_removed_expert_changes"]
    assert (acted_on["n"], acted_on["changed"]["1m"]) == (1, 1.0)


@pytest.fixture(scope="module")
def edited_root(tmp_path_factory):
    """Keyframe 3 shows keyframe 8 when its hazard is removed, and itself with an irrelevant edit."""
    root = make_labeled_root(tmp_path_factory.mktemp("data") / "root")
    cache = open_val(root, tmp_path_factory.mktemp("cache") / "val")
    rows = []
    for edit, kind, hazard, source in (
        ("remove-pedestrian-0", "remove", "pedestrian-0", 8),
        ("colors-7", "colors", "", 3),
    ):
        for own, other in zip(cache.files(3, 1)[0], cache.files(source, 1)[0], strict=True):
            file = edited_file(root, edit, own)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((root / other).read_bytes())
        future = cache.truth(8).future.tolist()
        rows.append(
            {
                "sample_token": "sample3",
                "edit": edit,
                "kind": kind,
                "hazard": hazard,
                "seen": True,
                "future": future,
            }
        )
    (root / FOLDER / TABLE).write_text(json.dumps(rows))
    return root, cache


def test_a_plan_follows_the_edited_pictures_and_no_others(edited_root, tmp_path):
    root, cache = edited_root
    models = perfect_models(cache)
    edits = chosen_edits(cache, root, KEYFRAMES, 10, 0)
    assert [edit.hazard for edit in edits] == ["pedestrian-0", ""]
    removed, irrelevant = find_effects(models, cache, root, edits, tmp_path / "e.jsonl", lambda _: None)
    # The stand-in drives as the driver did in whatever keyframe it is shown.
    assert np.allclose(removed.base, cache.truth(3).future, atol=1e-3)
    assert np.allclose(removed.edited, cache.truth(8).future, atol=1e-3)
    assert (removed.kind, irrelevant.kind) == ("pedestrian", "colors")
    assert irrelevant.change_m == 0
    assert removed.off_m(removed.edited) == pytest.approx(0, abs=1e-3)


def test_what_was_planned_is_not_planned_again(edited_root, tmp_path):
    root, cache = edited_root
    models = perfect_models(cache)
    edits = chosen_edits(cache, root, KEYFRAMES, 10, 0)
    first = find_effects(models, cache, root, edits, tmp_path / "e.jsonl", lambda _: None)
    asked = models.encoder.extracted
    assert find_effects(models, cache, root, edits, tmp_path / "e.jsonl", lambda _: None) == first
    assert models.encoder.extracted == asked
    changed = [replace(edits[0], edit="colors-7"), edits[1]]
    find_effects(models, cache, root, changed, tmp_path / "other.jsonl", lambda _: None)
    assert models.encoder.extracted > asked


def test_only_keyframes_that_were_asked_count(edited_root):
    root, cache = edited_root
    assert chosen_edits(cache, root, 3, 10, 0) == []
    assert len(chosen_edits(cache, root, 4, 10, 0)) == 2


def test_a_root_without_edits_says_how_to_make_them(tmp_path):
    root = make_labeled_root(tmp_path / "root")
    cache = open_val(root, tmp_path / "cache")
    with pytest.raises(InputError, match="sparseoccvla world edit"):
        chosen_edits(cache, root, KEYFRAMES, 5, 0)


def test_the_pictures_of_the_test_differ(edited_root):
    # Else nothing above could show.
    root, cache = edited_root
    own, other = (cv2.imread(str(root / cache.files(k, 1)[0][0])) for k in (3, 8))
    assert np.abs(own.astype(int) - other).mean() > 1
