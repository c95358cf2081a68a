"""`world edit`: a root's pictures again with one thing changed, and samples that show them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.edits import FOLDER, TABLE, EditedKeyframe, edited_file, edited_sample, read_edits
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.world.edited import write_edits
from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import Request, RootOptions

pytestmark = pytest.mark.slow

OPTIONS = RootOptions(176, 96, 2.5, lidar=False, pixel_stride=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("edited") / "root"
    generate(root, OPTIONS, Request("rightville", "train", 1, 1))
    write_edits(Tables(root), "train")
    torch.set_num_threads(before)
    return root


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory) -> SampleCache:
    config = CacheConfig(OPTIONS.height_px, OPTIONS.width_px)
    return open_cache(Tables(root), "train", config, tmp_path_factory.mktemp("cache") / "train")


@pytest.fixture(scope="module")
def edits(root) -> list[EditedKeyframe]:
    return read_edits(root)


def changed(cache: SampleCache, root: Path, edited: EditedKeyframe) -> np.ndarray:
    """Share of pixels that an edit changes clearly, in each camera at t0."""
    [plain], [other] = (
        sample.history
        for sample in (
            cache.sample(cache.tokens.index(edited.sample_token)),
            edited_sample(cache, root, edited),
        )
    )
    return (np.abs(plain.images_rgb.astype(int) - other.images_rgb).max(axis=-1) > 24).mean(axis=(1, 2))


def test_event_frames_lose_their_hazard_and_as_many_others_get_another_look(cache, edits):
    flagged = {token for token, needs in zip(cache.tokens, cache.needs_sight, strict=True) if needs}
    without = {edit.sample_token for edit in edits if edit.hazard}
    assert without == flagged
    assert len(flagged) >= 2
    plain = [edit.sample_token for edit in edits if not edit.hazard]
    assert not flagged & set(plain)
    assert len(plain) == min(len(flagged), len(cache) - len(flagged))
    assert {edit.kind for edit in edits if edit.hazard} <= {"remove", "calm"}
    assert {edit.kind for edit in edits if not edit.hazard} <= {"colors", "weather", "hour"}


def test_a_limit_spreads_over_the_split(tmp_path, root, edits):
    copy = tmp_path / "root"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(FOLDER))
    assert write_edits(Tables(copy), "train", limit=2) == 4
    without = [edit.sample_token for edit in edits if edit.hazard]
    assert {edit.sample_token for edit in read_edits(copy) if edit.hazard} == {without[0], without[-1]}


def test_without_its_hazard_a_frame_changes_where_the_hazard_was_and_nowhere_else(cache, root, edits):
    for edit in (edit for edit in edits if edit.hazard):
        assert 0 < changed(cache, root, edit).max() < 0.3
        assert edit.seen
    edit = next(edit for edit in edits if edit.hazard)
    index, name = cache.tokens.index(edit.sample_token), edit.edit
    [files] = cache.files(index)
    same = [edited_file(root, name, Path(file)).read_bytes() == (root / file).read_bytes() for file in files]
    assert any(same), "a camera that never saw it has the same picture, to the bit"
    assert not all(same)


def test_another_look_changes_every_picture(cache, root, edits):
    shares = [changed(cache, root, edit).mean() for edit in edits if not edit.hazard]
    assert max(shares) > 0.1


def test_only_pictures_are_edited_and_the_history_with_them(cache, root, edits):
    edit = [edit for edit in edits if edit.hazard][-1]  # half a second before it the lead brakes already
    index = cache.tokens.index(edit.sample_token)
    plain, other = cache.sample(index, frames=2), edited_sample(cache, root, edit, frames=2)
    np.testing.assert_array_equal(plain.truth.future, other.truth.future)
    assert plain.truth.ego.speed_mps == other.truth.ego.speed_mps
    for before, after in zip(plain.history, other.history, strict=True):
        assert (before.images_rgb != after.images_rgb).any()
        np.testing.assert_array_equal(before.image_from_odom, after.image_from_odom)


def test_the_expert_does_something_else_only_where_its_reason_is_gone(cache, edits):
    def apart_m(edit: EditedKeyframe) -> float:
        future = cache.truth(cache.tokens.index(edit.sample_token)).future
        return float(np.linalg.norm((edit.future - future)[:, :2], axis=1).max())

    assert max(apart_m(edit) for edit in edits if edit.hazard) > 0.3
    assert max(apart_m(edit) for edit in edits if not edit.hazard) < 0.02


def test_editing_again_changes_nothing(root):
    table = root / FOLDER / TABLE
    files = {file: file.read_bytes() for file in (root / FOLDER).rglob("*.jpg")}
    before = json.loads(table.read_bytes())
    assert write_edits(Tables(root), "train") == len(before)
    assert json.loads(table.read_bytes()) == before
    assert files == {file: file.read_bytes() for file in (root / FOLDER).rglob("*.jpg")}


def test_what_is_not_there_is_said_in_words(cache, root, edits, tmp_path):
    with pytest.raises(InputError, match="sparseoccvla world edit"):
        read_edits(tmp_path)
    stranger = EditedKeyframe("elsewhere", "remove-elk-0", "remove", "elk-0", True, np.zeros((6, 3)))
    with pytest.raises(InputError, match="same data set"):
        edited_sample(cache, root, stranger)
    lost = EditedKeyframe(edits[0].sample_token, "remove-elk-0", "remove", "elk-0", True, np.zeros((6, 3)))
    with pytest.raises(InputError, match="can't read picture"):
        edited_sample(cache, root, lost)
