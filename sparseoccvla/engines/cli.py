"""`sparseoccvla export` and `sparseoccvla engine ...`: graphs and engines, without ROS."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.runtime.engine_record import EngineRecord, Precision, State, read_records

app = typer.Typer(no_args_is_help=True, help="Build, check and verify TensorRT engines.")

ONLY_BUILT = 3  # exit code of `check`: all is well, but not every engine has run on its GPU

FolderArgument = Annotated[Path, typer.Argument(help="Folder of `engine build`.")]


def export_command(
    model: Annotated[str, typer.Option("--model", help="A model folder, or a name under models/.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New, or exported before; left out: where nodes look by themselves."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights that are not trained.")] = 0,
) -> None:
    """Write a model's stages as ONNX graphs, with what torch makes of fixed inputs beside them."""
    from sparseoccvla.engines.export import export
    from sparseoccvla.runtime.exported import default_folder
    from sparseoccvla.runtime.manifest import read_manifest

    start = time.monotonic()
    folder = out or default_folder(read_manifest(model).model_id)
    exported = export(model, folder, seed)
    print(
        json.dumps(
            {
                "export": str(folder),
                "model_id": exported.model_id,
                "opset": exported.opset,
                "graphs": {name: spec.sha256_by_file for name, spec in exported.graphs.items()},
                "seconds": round(time.monotonic() - start, 1),
            }
        )
    )


@app.command()
def build(
    onnx: Annotated[Path, typer.Option(help="Folder of `sparseoccvla export`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the engines.")],
    targets: Annotated[str, typer.Option(help="sm86,sm89,...; left out: this machine's GPU.")] = "",
    precision: Annotated[Precision, typer.Option(help="mixed: backbone fp16, the rest fp32.")] = (
        Precision.FP32
    ),
) -> None:
    """Build engines; what is there already is kept. Needs no GPU when targets are named."""
    from sparseoccvla.engines import build as engines

    _print(engines.build(onnx, out, [t for t in targets.split(",") if t], precision))


@app.command()
def check(folder: FolderArgument) -> None:
    """Exit 0: whole, fitting and verified; 3: whole and fitting, but only built; 2: not."""
    from sparseoccvla.engines import build as engines

    records = engines.check(folder)
    _print(records)
    if any(record.state != State.VERIFIED for record in records):
        sys.exit(ONLY_BUILT)


@app.command()
def verify(folder: FolderArgument) -> None:
    """Run every engine of this machine's GPU against torch's results and record it."""
    from sparseoccvla.engines import build as engines

    _print(engines.verify(folder))


@app.command("list")
def list_engines(folder: FolderArgument) -> None:
    """What the records say; nothing is checked."""
    _print(read_records(folder))


def _print(records: list[EngineRecord]) -> None:
    for record in records:
        print(f"{record.state:8} {record.stem}  {record.engine_bytes / 1e6:.1f} MB", file=sys.stderr)
    print(json.dumps({"engines": [asdict(record) for record in records]}))
