"""`sparseoccvla eval ...`: how good a model is, on a data set or a bag."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparseoccvla.config import ModelSource
from sparseoccvla.evaluation.predictions import Part, Shuffle
from sparseoccvla.evaluation.runner import RunConfig
from sparseoccvla.metrics.language import Tokens

app = typer.Typer(help="Measure a model beside rows that need no eyes.", no_args_is_help=True)

Model = Annotated[str, typer.Option("--model", help="A model folder, or a name under models/.")]
DataRoot = Annotated[Path, typer.Option(help="Data set in nuScenes format, real or generated.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the results: new, or of the same run.")]
Version = Annotated[str | None, typer.Option(help="Needed when the root has several.")]
Split = Annotated[str, typer.Option(help="Scenes that are scored.")]
TrainSplit = Annotated[str, typer.Option(help="Scenes the blind rows are fitted on.")]
Shuffles = Annotated[
    list[Shuffle] | None,
    typer.Option("--shuffle", help="A control beside the model; may be repeated."),
]
Limit = Annotated[int, typer.Option(help="Keyframes at most, from the beginning; 0: all.")]
Asked = Annotated[int, typer.Option(help="Keyframes that are asked questions, drawn by the seed; 0: all.")]
Edited = Annotated[
    int, typer.Option(help="Edits by `world edit` that take a hazard away, and others; 0: none.")
]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
TokensOption = Annotated[Tokens, typer.Option(help="How sentences become words.")]
QuestionOnly = Annotated[str, typer.Option(help="A model trained without occupancy tokens, as a blind row.")]
RaysEvery = Annotated[int, typer.Option(min=1, help="RayIoU of every n-th keyframe.")]
Backend = Annotated[str, typer.Option(help="Who computes; see the parameter `backend` of the nodes.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores. Busy cores want 1.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that predict, and share the threads.")]
Caches = Annotated[Path | None, typer.Option(help="Where caches of samples lie or go; else in --out.")]


_HELP = {
    "occupancy": "Occupancy now: mIoU, IoU and RayIoU by class, beside the static prior.",
    "forecast": "Occupancy 1, 2 and 3 s ahead, beside persistence.",
    "planning": "L2 and collision by every protocol, beside constant velocity, ego-only and the expert.",
    "language": "Texts and closed questions, beside who answers without seeing.",
    "all": "All of these from one pass over the keyframes.",
}


def _command(parts: tuple[Part, ...]) -> Callable[..., None]:
    """The command that evaluates these parts; all have the same options."""

    def command(
        model: Model,
        dataroot: DataRoot,
        out: Out,
        version: Version = None,
        split: Split = "val",
        train_split: TrainSplit = "train",
        shuffle: Shuffles = None,
        limit: Limit = 0,
        asked: Asked = 150,
        edited: Edited = 300,
        seed: Seed = 0,
        tokens: TokensOption = Tokens.RAW,
        question_only: QuestionOnly = "",
        rays_every: RaysEvery = 10,
        backend: Backend = "torch",
        threads: Threads = 0,
        workers: Workers = 1,
        caches: Caches = None,
    ) -> None:
        from sparseoccvla.data.tables import Tables
        from sparseoccvla.evaluation.evaluate import Evaluation, evaluate

        evaluation = Evaluation(
            parts=parts,
            source=ModelSource(model, backend, threads=threads or os.cpu_count() or 1),
            tables=Tables(dataroot, version),
            out=out,
            command=shlex.join(["sparseoccvla", *sys.argv[1:]]),
            split=split,
            train_split=train_split,
            shuffles=tuple(dict.fromkeys(s for s in shuffle or () if s is not Shuffle.NONE)),
            run=RunConfig(limit, seed, asked),
            edited=edited,
            tokens=tokens,
            rays_every=rays_every,
            question_only=question_only,
            caches=caches,
            workers=workers,
        )
        files = evaluate(evaluation, _progress)
        report = out / "report.md"
        print(report.read_text(encoding="utf-8"), file=sys.stderr)
        print(json.dumps({"out": str(out), "report": str(report), "results": [str(file) for file in files]}))

    return command


for _name, _help in _HELP.items():
    app.command(_name, help=_help)(_command(tuple(Part) if _name == "all" else (Part(_name),)))


@app.command("bag")
def bag(
    bag: Annotated[Path, typer.Option("--bag", help="A drive: rosbag2 folder or .mcap file.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results: new, or of this command.")],
    follow: Annotated[
        Path | None, typer.Option(help="What a live run published over that drive; its plans are repeated.")
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help="ROS parameter file of the vehicle, as launch takes it.")
    ] = None,
    backend: Backend = "torch",
    threads: Threads = 0,
    seed: Seed = 0,
) -> None:
    """Run the whole stack over a bag without ROS or a clock; plans are judged by what the driver did."""
    from sparseoccvla.evaluation.bag import BagEvaluation, evaluate_bag
    from sparseoccvla.evaluation.offline import StackSettings, read_settings
    from sparseoccvla.evaluation.runner import Models

    settings = read_settings(params_file) if params_file else StackSettings()
    models = Models.load(
        ModelSource(model, backend, threads=threads or os.cpu_count() or 1, seed=seed), tuple(Part)
    )
    command = shlex.join(["sparseoccvla", *sys.argv[1:]])
    file = evaluate_bag(BagEvaluation(models, settings, bag, out, command, follow))
    report = out / "report.md"
    print(report.read_text(encoding="utf-8"), file=sys.stderr)
    print(json.dumps({"out": str(out), "report": str(report), "results": [str(file)]}))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; silent when that is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
