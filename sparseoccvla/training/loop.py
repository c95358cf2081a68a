"""The training loop: the same for every stage, on one CPU, one GPU or several processes.

A stage is a `Task`, whose forward turns a batch into loss terms. Everything random is seeded by
step and place in the batch, so a run that was killed goes on exactly (bit by bit on a CPU) from its
checkpoint: weights, optimizer and step are all the state there is.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from sparseoccvla.allocator import keep_memory
from sparseoccvla.errors import InputError
from sparseoccvla.training.config import ScheduleConfig, TrainingConfig
from sparseoccvla.training.losses import Term, reduce_terms
from sparseoccvla.training.report import Report
from sparseoccvla.training.schedule import rate_at
from sparseoccvla.training.signs import failure_signs, first_signs


class Task(nn.Module, ABC):
    """What a stage trains."""

    weights: Mapping[str, float]  # of loss terms, see `reduce_terms`
    pretrained_prefixes: tuple[str, ...] = ()  # names of parameters that came trained from elsewhere
    guessing: Mapping[str, float] = MappingProxyType({})  # what terms are where nothing is known

    @abstractmethod
    def forward(self, batch: Any, step: int) -> dict[str, Term]:
        """Loss terms of one process's share of a step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on a few validation samples."""


@dataclass(frozen=True)
class Length:
    """How long to train. With minutes the learning rate follows the clock: all the time is used, but
    two runs differ. With steps a run is exactly repeatable.
    """

    steps: int = 0
    minutes: float = 0.0

    @property
    def option(self) -> str:
        """As the command line has it."""
        return f"--minutes {self.minutes:g}" if self.minutes else f"--steps {self.steps}"

    def __add__(self, other: Length) -> Length:
        return Length(self.steps + other.steps, self.minutes + other.minutes)

    def split(self, share: float) -> tuple[Length, Length]:
        """A first part and the rest."""
        first = Length(round(self.steps * share), self.minutes * share)
        return first, Length(self.steps - first.steps, self.minutes - first.minutes)

    def share_done(self, step: int, elapsed_s: float) -> float:
        """0 at the start, 1 when done."""
        return elapsed_s / (60 * self.minutes) if self.minutes else step / self.steps


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """One process or several, on whatever `accelerate` finds."""
    if not torch.cuda.is_available():
        torch.set_num_threads(config.threads)
        keep_memory()
    return Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=not torch.cuda.is_available()
    )


class Loop:
    """Trains one stage until its length is over.

    Args:
        stage: its name; checkpoint and log lines carry it.
        task: a module that is a `Task`.
        batches: from a step on, for this process.
        schedule: of the stage.
        config: of the run.
        length: when to stop.
        out: folder of the run.
        accelerator: as `make_accelerator` gives.
    """

    def __init__(
        self,
        stage: str,
        task: Task,
        batches: Callable[[int], Iterator[Any]],
        schedule: ScheduleConfig,
        config: TrainingConfig,
        length: Length,
        out: Path,
        accelerator: Accelerator,
    ) -> None:
        if schedule.batch % accelerator.num_processes:
            raise InputError(
                f"a batch of {schedule.batch} can't be shared evenly by {accelerator.num_processes} "
                f"processes; set {stage}.schedule.batch to a multiple"
            )
        self.stage, self.task, self.schedule, self.config = stage, task, schedule, config
        self.length, self.accelerator = length, accelerator
        self._batches = batches
        self._file = out / "checkpoints" / f"{stage}.pt"
        self._optimizer = torch.optim.AdamW(
            parameter_groups(task, schedule),
            lr=schedule.learning_rate,
            fused=accelerator.device.type == "cuda",
        )
        self.step, self.elapsed_s = 0, 0.0
        self._figures: list[dict[str, float]] = []  # since this process began
        task.to(accelerator.device)
        self._resume()
        self._report = Report(out, stage, self.step, accelerator.is_main_process)
        self._model, self._optimizer = accelerator.prepare(task, self._optimizer)

    def run(self) -> dict[str, float]:
        """Train, validate and keep checkpoints until done; the last figures."""
        began, before_s = time.monotonic(), self.elapsed_s
        checked = validated = began
        self.task.train()
        with self._report:
            for batch in self._batches(self.step):
                done = self._share_done()
                if done >= 1:
                    break
                self._train_step(batch, done)
                now = time.monotonic()
                self.elapsed_s = before_s + now - began
                if self._due(now - validated > 60 * self.config.validate_minutes):
                    self._validate()
                    validated = time.monotonic()
                if now - checked > 60 * self.config.checkpoint_minutes:
                    self.save()
                    checked = time.monotonic()
            figures = self._validate()
            self.save()
        return figures

    def _train_step(self, batch: Any, done: float) -> None:
        accelerator, schedule = self.accelerator, self.schedule
        rate = rate_at(schedule, self.step, done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["share"]
        # Dropout draws from the global generator.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        terms = self._model(batch, self.step)
        loss, values = reduce_terms(terms, self.task.weights, accelerator.reduce, accelerator.num_processes)
        if not torch.isfinite(loss):
            bad = ", ".join(name for name, value in values.items() if not torch.isfinite(value))
            raise FloatingPointError(f"step {self.step} of {self.stage}: {bad} is no number; lower the rate")
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.task.parameters(), schedule.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        if self.step % self.config.log_steps == 0 or self.step == 1:
            parts = accelerator.reduce(torch.stack([loss.detach(), *values.values()]), "mean").tolist()
            named = dict(zip(values, parts[1:], strict=True))
            self._report.losses(self.step, parts[0], named, float(norm), rate, done, self.elapsed_s)
            for sign in first_signs(named, self.task.guessing) if self.step == 1 else ():
                self._report.remark(self.step, sign)

    def _share_done(self) -> float:
        """As process 0 sees it: clocks differ, and all must stop together."""
        done = self.length.share_done(self.step, self.elapsed_s)
        if self.accelerator.num_processes == 1 or not self.length.minutes:
            return done
        return float(broadcast(torch.tensor(done, device=self.accelerator.device)))

    def _due(self, due: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return due
        return bool(broadcast(torch.tensor(float(due), device=self.accelerator.device)))

    def _validate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            self.task.eval()
            with torch.no_grad():
                figures = self.task.validate()
            self.task.train()
            self._report.figures(self.step, figures, self.elapsed_s)
            self._figures.append(figures)
            for sign in failure_signs(self._figures):
                self._report.remark(self.step, sign)
        self.accelerator.wait_for_everyone()
        return figures

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves the old or the new one."""
        if not self.accelerator.is_main_process:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "weights": self._stored(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "identity": self._identity(),
        }
        partial = self._file.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            os.fsync(file.fileno())
        partial.replace(self._file)

    def _stored(self) -> dict[str, Tensor]:
        """All but frozen parameters, which came from elsewhere and are there again."""
        frozen = {name for name, parameter in self.task.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.task.state_dict().items() if name not in frozen}

    def _resume(self) -> None:
        if not self._file.exists():
            return
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if state["identity"] != self._identity():
            raise InputError(
                f"{self._file} was written with other settings than asked for now; repeat the command that "
                "began it, or choose another --out"
            )
        missing = self.task.load_state_dict(state["weights"], strict=False).missing_keys
        if set(missing) & set(self._stored()):
            raise InputError(
                f"{self._file} lacks {sorted(missing)[:3]}; it is of another version: choose another --out"
            )
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]

    def _identity(self) -> str:
        """What must be equal for a run to go on. Its length is not in it: a run may be prolonged."""
        content = asdict(self.config) | {"stage": self.stage}
        for harmless in (
            "threads",
            "validate_minutes",
            "checkpoint_minutes",
            "log_steps",
            "validation_samples",
        ):
            content.pop(harmless)
        if self.stage != "teacher":
            content.pop("teacher")  # how it was made; which one is used is a setting of the encoder
        return json.dumps(content, sort_keys=True)


def parameter_groups(task: Task, schedule: ScheduleConfig) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, our own and pretrained ones."""
    prefixes = task.pretrained_prefixes
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            # Places are no weights: decay would draw them into a corner of the grid.
            key = (parameter.ndim > 1 and "initial_points" not in name, name.startswith(prefixes))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": schedule.weight_decay if decays else 0.0,
            "share": schedule.pretrained_rate if pretrained else 1.0,
        }
        for (decays, pretrained), parameters in groups.items()
    ]
