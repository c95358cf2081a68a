"""Learning rate over a run."""

from __future__ import annotations

import math

from sparseoccvla.training.config import ScheduleConfig


def rate_at(schedule: ScheduleConfig, step: int, done: float) -> float:
    """Linear warm-up over steps, then half a cosine over the share of the run that is `done`."""
    warm = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return schedule.learning_rate * warm * (schedule.last_rate + (1 - schedule.last_rate) * cosine)
