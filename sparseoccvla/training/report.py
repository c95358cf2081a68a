"""What a run says: metrics.jsonl, TensorBoard, and one line in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_WIDTH = 200


class Report:
    """Log of one stage; lines of the file beyond the step that a run resumes from are dropped.

    Args:
        out: folder of the run.
        stage: its name.
        first_step: where the run begins.
        active: False in all processes but one.
    """

    def __init__(self, out: Path, stage: str, first_step: int, active: bool) -> None:
        self._stage, self._active = stage, active
        self._file = out / "metrics.jsonl"
        self._last = (first_step, time.monotonic())
        if not active:
            return
        out.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            lines = [line for line in self._file.read_text().splitlines() if _kept(line, stage, first_step)]
            self._file.write_text("".join(line + "\n" for line in lines))
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(out / "tensorboard" / stage), purge_step=first_step)
        self._console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else _WIDTH)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Report:
        if self._active:
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=1.0, left="")
            self._last = (self._last[0], time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._bar.stop()
            self._board.close()

    def losses(
        self,
        step: int,
        loss: float,
        values: Mapping[str, float],
        norm: float,
        rate: float,
        done: float,
        elapsed_s: float,
    ) -> None:
        """Loss and its parts after a step."""
        if not self._active:
            return
        now = time.monotonic()
        step_s = (now - self._last[1]) / max(1, step - self._last[0])
        self._last = (step, now)
        left_s = elapsed_s * (1 - done) / done if done > 0 else None
        left = "time left unknown" if left_s is None else f"{left_s / 60:.1f} min left"
        numbers = {name: round(value, 5) for name, value in values.items()}
        line = {
            "loss": round(loss, 5), **numbers, "gradient_norm": round(norm, 3),
            "rate": rate, "step_s": round(step_s, 4), "left_s": None if left_s is None else round(left_s, 1),
        }  # fmt: skip
        self._write(step, elapsed_s, line)
        self._bar.update(self._task, completed=done, left=left)
        shown = " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        self._console.print(
            f"{self._stage} {step}: loss {loss:.4g} ({shown}), {step_s:.2f} s/step, {left}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip

    def figures(self, step: int, figures: Mapping[str, Any], elapsed_s: float) -> None:
        """Validation figures."""
        if not self._active:
            return
        self._write(step, elapsed_s, {f"val/{name}": value for name, value in figures.items()})
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in figures.items()
        )
        self._console.print(f"{self._stage} {step} validation: {shown}", highlight=False, soft_wrap=True)
        self._last = (step, time.monotonic())

    def remark(self, step: int, text: str) -> None:
        """Something that looks wrong, in words."""
        if self._active:
            self._board.add_text("remark", text, step)
            self._console.print(f"{self._stage} {step}: {text}", style="yellow", highlight=False)

    def _write(self, step: int, elapsed_s: float, line: Mapping[str, Any]) -> None:
        with self._file.open("a") as file:
            content = {"stage": self._stage, "step": step, "elapsed_s": round(elapsed_s, 1), **line}
            file.write(json.dumps(content) + "\n")
        for name, value in line.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)


def _kept(line: str, stage: str, first_step: int) -> bool:
    entry = json.loads(line)
    return bool(entry["stage"] != stage or entry["step"] <= first_step)
