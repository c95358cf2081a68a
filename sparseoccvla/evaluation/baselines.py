"""Rows that need no eyes, fitted on the training split and kept, so that every evaluation has the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparseoccvla.config import Checked, setting
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.questions import Question, questions_about
from sparseoccvla.metrics.baselines import MajorityAnswers, StaticPrior
from sparseoccvla.metrics.ego_only import EgoOnlyPlanner, ego_features

Progress = Callable[[int], None]
_HELD_OUT = 10  # every n-th scene of the training split chooses the learning rate


@dataclass(frozen=True)
class BaselineConfig(Checked):
    """How the blind rows are fitted. Steps and batch are those of the planner beside them."""

    prior_frames: int = setting(2000, "Training frames behind the static prior, evenly chosen.", low=1)
    steps: int = setting(4000, "Steps of the ego-only planner.", low=1)
    batch: int = setting(64, "Its batch.", low=1)
    learning_rates: tuple[float, ...] = setting(
        (3e-4, 1e-3, 3e-3), "Tried; the best on held-out scenes stays."
    )
    seed: int = setting(0, "Of weights and batches.", low=0)


@dataclass(frozen=True)
class Baselines:
    """What the training split says without pictures."""

    prior: NDArray[np.uint8]  # (200, 200, 16)
    ego_only: EgoOnlyPlanner
    majority: MajorityAnswers
    report: dict[str, Any]  # how they were made, for results files


def fit_baselines(
    train: SampleCache, folder: Path, config: BaselineConfig, progress: Progress = lambda _: None
) -> Baselines:
    """Fit them, or take those that `folder` holds of the same data and settings.

    Raises:
        InputError: no training frame has what they need.
    """
    identity = {
        "data": {name: train.manifest.get(name) for name in ("version", "split", "tables")},
        **asdict(config),
    }
    identity = json.loads(json.dumps(identity))
    made = folder / "baselines.json"
    if not made.exists() or json.loads(made.read_bytes())["of"] != identity:
        folder.mkdir(parents=True, exist_ok=True)
        made.unlink(missing_ok=True)
        np.save(folder / "static_prior.npy", fit_prior(train, config.prior_frames, progress))
        planner, sweep = train_ego_only(train, config)
        save_file(planner.state_dict(), folder / "ego_only.safetensors")
        majority = fit_majority(train)
        (folder / "majority.json").write_text(json.dumps(majority.by_question))
        made.write_text(json.dumps({"of": identity, "ego_only": sweep}, indent=1))
    planner = EgoOnlyPlanner()
    planner.load_state_dict(load_file(folder / "ego_only.safetensors"))
    majority = MajorityAnswers()
    for question, answers in json.loads((folder / "majority.json").read_bytes()).items():
        majority.by_question[question] = Counter(answers)
    return Baselines(
        np.load(folder / "static_prior.npy", allow_pickle=False),
        planner.eval(),
        majority,
        dict(json.loads(made.read_bytes())),
    )


def fit_prior(train: SampleCache, frames: int, progress: Progress = lambda _: None) -> NDArray[np.uint8]:
    """The most frequent label of each voxel in the camera masks of at most `frames` training frames."""
    prior = StaticPrior()
    for index in np.unique(np.linspace(0, len(train) - 1, min(frames, len(train))).astype(int)):
        label = train.occupancy(int(index))
        if label is not None:
            prior.update(label.semantics, label.camera_mask)
        progress(1)
    return prior.labels()


def fit_majority(train: SampleCache) -> MajorityAnswers:
    """The most frequent answer to every question, and to every type of question, of the training split."""
    majority = MajorityAnswers()
    for index in range(len(train)):
        for question in questions_about(train.language(index)):
            majority.update(question.text, question.reference)
            majority.update(_group(question), question.reference)
    return majority


def majority_answer(majority: MajorityAnswers, question: Question) -> str:
    """The most frequent answer to this question; in words never met, to this type of question."""
    known = question.text in majority.by_question
    return majority.answer(question.text if known else _group(question))


def _group(question: Question) -> str:
    return f"{question.kind} {question.type}"


def train_ego_only(train: SampleCache, config: BaselineConfig) -> tuple[EgoOnlyPlanner, dict[str, Any]]:
    """The ego-only planner: a sweep of learning rates on held-out scenes, the best one's weights.

    The loss is that of the model's planner on its chosen candidate: L1 over all waypoints.

    Returns:
        The planner, and for the results file each rate with its held-out L1 and L2.
    """
    truths = [train.truth(index) for index in range(len(train))]
    usable = [truth for truth in truths if truth.future_valid.all()]
    if not usable:
        raise InputError("no keyframe of the training split has a future of 3 s; the ego-only row needs some")
    features = torch.from_numpy(np.stack([ego_features(t.ego, t.command) for t in usable]))
    futures = torch.from_numpy(np.stack([t.future for t in usable])).float()
    scenes = sorted({truth.scene for truth in usable})
    held = torch.tensor([scenes.index(t.scene) % _HELD_OUT == _HELD_OUT - 1 for t in usable])
    if not held.any():
        held = torch.arange(len(usable)) % _HELD_OUT == 0
    learn = ~held if not held.all() else held
    best: tuple[float, EgoOnlyPlanner, float] | None = None
    tried = []
    for rate in config.learning_rates:
        planner = _train(features[learn], futures[learn], rate, config)
        with torch.no_grad():
            l1 = _loss(planner, features[held], futures[held]).item()
            off = planner(features[held])[..., :2] - futures[held][..., :2]
        l2 = off.norm(dim=-1).mean().item()
        tried.append({"learning_rate": rate, "held_out_L1": l1, "held_out_L2_m": l2})
        if best is None or l1 < best[0]:
            best = (l1, planner, rate)
    assert best is not None
    return best[1], {
        "frames": int(learn.sum()),
        "held_out_frames": int(held.sum()),
        "chosen_learning_rate": best[2],
        "tried": tried,
    }


def _train(features: Tensor, futures: Tensor, rate: float, config: BaselineConfig) -> EgoOnlyPlanner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        planner = EgoOnlyPlanner()
    draw = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(planner.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, config.steps)
    for _ in range(config.steps):
        batch = torch.randint(len(features), (config.batch,), generator=draw)
        optimizer.zero_grad()
        _loss(planner, features[batch], futures[batch]).backward()
        optimizer.step()
        schedule.step()
    return planner


def _loss(planner: EgoOnlyPlanner, features: Tensor, futures: Tensor) -> Tensor:
    return (planner(features) - futures)[..., :2].abs().mean()
