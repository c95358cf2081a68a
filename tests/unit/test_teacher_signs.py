"""A language model that begins worse than a blind guess is named when it happens."""

import math
from itertools import repeat
from pathlib import Path

import pytest
import torch
from torch import nn

from sparseoccvla.training.config import ScheduleConfig, TrainingConfig
from sparseoccvla.training.loop import Length, Loop, Task, make_accelerator
from sparseoccvla.training.losses import Term
from sparseoccvla.training.report import Report
from sparseoccvla.training.signs import first_signs


def test_a_text_loss_above_blind_guessing_points_at_raw_distillation() -> None:
    guessing = {"text": math.log(1536)}
    [said] = first_signs({"text": 12.0, "path": 40.0}, guessing)
    assert "text begins at 12, above the 7.34 of blind guessing" in said
    assert "distilled raw" in said
    assert first_signs({"text": 7.4, "path": 40.0}, guessing) == []
    assert first_signs({"path": 40.0}, guessing) == first_signs({"text": 40.0}, {}) == []


class OneWeight(Task):
    """A task whose first loss is `first` and whose next ones are higher."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.weights = {}
        self.guessing = {"text": 2.0}
        self.weight = nn.Parameter(torch.tensor([first]))

    def forward(self, batch: None, step: int) -> dict[str, Term]:
        return {"text": Term(self.weight.sum() * (1 + 9 * step), torch.tensor(1.0))}

    def validate(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("first", "remarks"), [(3.0, [1]), (1.0, [])])
def test_only_the_first_step_is_asked(
    first: float, remarks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    monkeypatch.setattr(Report, "remark", lambda self, step, text: heard.append(step))
    config = TrainingConfig(precision="fp32", threads=1, log_steps=1)
    schedule = ScheduleConfig(warmup_steps=0)
    Loop(
        "planning",
        OneWeight(first),
        lambda _: repeat(None),
        schedule,
        config,
        Length(steps=3),
        tmp_path,
        make_accelerator(config),
    ).run()
    assert heard == remarks
