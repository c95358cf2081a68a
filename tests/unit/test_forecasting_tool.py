"""What the tool that says what limits forecasts counts."""

from pathlib import Path

import pytest
import torch

from sparseoccvla.encoder import Encoder
from sparseoccvla.language import byte_tokenizer_json, load_tokenizer
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.driving import DrivingSampler
from sparseoccvla.training.packing import Texts
from sparseoccvla.training.run import Run
from sparseoccvla.training.tokens import Queries, QueriesOf
from tests.training_root import MODEL, make_training_root, write_settings
from tools.forecasting import rows

torch.set_num_threads(1)


def test_what_moves_and_what_is_said_are_told_apart(tmp_path: Path) -> None:
    root = make_training_root(tmp_path / "root")
    run = Run(write_settings(root), "tiny.json", root, None, root / "cache", tmp_path / "run")
    cache = run.split("val")
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json())
    texts = Texts(load_tokenizer(MODEL.reasoner.language, tmp_path / "tokenizer.json"), "plain")
    torch.manual_seed(0)
    encoder, reasoner = Encoder(MODEL.encoder).eval(), Reasoner(MODEL.reasoner).eval()
    seen = QueriesOf(cache, encoder, torch.float32)
    sampler = DrivingSampler(cache, texts, DrivingTraining(), 0)

    def found(label: int = 4) -> dict[str, list[dict]]:
        """With every point of one class."""

        def queries(index: int) -> Queries:
            said = seen(index)
            return said._replace(labels=torch.full_like(said.labels, label), scores=0 * said.scores + 0.9)

        made = rows(reasoner, queries, cache, sampler, texts, MODEL.encoder.voxel_rule, 3)
        return {what: [row for row in made if row["what"] == what] for what in {row["what"] for row in made}}

    still = found()
    assert len(still) == 4
    assert all(row["moved_m"] < 0.3 for row in still["forecast"]), "at first a forecast repeats the present"
    figures = [(row["mIoU"], row["IoU"]) for row in still["present stays"]]
    assert figures[0][1] > 0
    assert [row["IoU"] for row in still["points stay"]] == pytest.approx(
        [iou for _, iou in figures], abs=0.02
    )
    with torch.no_grad():
        reasoner.forecaster.head.move.bias[2] = 1.0
    lifted = found()
    assert [row["moved_m"] for row in lifted["forecast"]] == pytest.approx([4.0, 8.0, 12.0], abs=0.1)
    assert [row["IoU"] for row in lifted["forecast"]] != [row["IoU"] for row in still["forecast"]]
    assert lifted["present stays"] == still["present stays"]
    ground = found(label=11)
    assert "moved_m" not in ground["forecast"][0]
    assert [row["IoU"] for row in ground["forecast"]] == [row["IoU"] for row in ground["present stays"]]
