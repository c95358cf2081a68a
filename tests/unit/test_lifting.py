"""What the tool that says what limits occupancy counts."""

import numpy as np
import pytest
import torch

from sparseoccvla.contracts import FREE_CLASS, NUM_CLASSES
from sparseoccvla.encoder import Auxiliary, Encoder
from sparseoccvla.training.config import TrainingConfig
from sparseoccvla.training.run import Run
from tests.training_root import MODEL, make_training_root, write_settings
from tools.lifting import Keyframe, lifted, rows

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = make_training_root(tmp_path_factory.mktemp("data") / "root")
    config: TrainingConfig = write_settings(root)
    return Run(config, "tiny.json", root, None, root / "cache", tmp_path_factory.mktemp("run"))


def test_every_way_is_scored_on_the_same_keyframes(run: Run) -> None:
    cache = run.split("val")
    torch.manual_seed(0)
    found = list(rows(Encoder(MODEL.encoder).eval(), cache, run.scenes(cache, as_driven=True), 2))
    assert [row["what"] for row in found] == ["decoder"] * 4 + ["cells"] * 8
    told = [(row["true_class"], row["true_depth"]) for row in found[:4]]
    assert sorted(told) == [(False, False), (False, True), (True, False), (True, True)]
    blind, right = found[4], found[7]
    assert right["mIoU"] != blind["mIoU"], "the truth changes what cells become"


def test_a_cell_becomes_the_voxels_at_its_depth(run: Run) -> None:
    cache = run.split("val")
    truth = run.scenes(cache, as_driven=True).batch([(3, 3)])
    shape = truth.pixel_classes.shape
    logits = torch.zeros(1, shape[1], NUM_CLASSES + 1, *shape[2:])
    logits[:, :, FREE_CLASS] = 1.0
    logits[0, 0, 4, 2, 3] = 9.0  # one cell of one camera is a car
    made = []
    for depth_m in (6.0, 12.0):
        said = Auxiliary(logits, torch.full(shape, depth_m).log())
        made.append(lifted(Keyframe(3, truth, said), cache, 2, False, False, 0.0))
    for labels in made:
        assert 1 <= (labels == 4).sum() <= 4
        assert ((labels == 4) | (labels == FREE_CLASS)).all()
    near, far = (np.argwhere(labels == 4).mean(axis=0) * 0.4 - 40.0 for labels in made)
    assert np.linalg.norm((far - near)[:2]) == pytest.approx(6.0, abs=1.5)
