"""`sparseoccvla train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.errors import InputError


def train_command(
    stage: Annotated[str, typer.Option(help="teacher, encoder, planning, planner or joint.")],
    config: Annotated[Path, typer.Option(help="Settings, e.g. config/train/tiny.json.")],
    dataroot: Annotated[Path, typer.Option(help="Data set in nuScenes format, real or generated.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; the same command goes on with it.")],
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Stop after so long; the rate follows the clock.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Stop after so many steps: exactly repeatable.")] = 0,
    version: Annotated[str | None, typer.Option(help="Needed when the root has several.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where samples are cached; default: cache/ in the data set.")
    ] = None,
) -> None:
    """Train one stage, or go on where it was stopped.

    For several processes: accelerate launch -m sparseoccvla train ...
    """
    from sparseoccvla.training.config import read_training_config
    from sparseoccvla.training.loop import Length
    from sparseoccvla.training.run import Run, train

    if minutes and steps:
        raise InputError("both --minutes and --steps were given, wanted one of them")
    settings = read_training_config(config)
    run = Run(settings, config.name, dataroot, version, cache or dataroot / "cache", out)
    train(stage, run, Length(steps, minutes))
