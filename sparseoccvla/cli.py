"""`sparseoccvla VERB`: every command of the project, none of which needs ROS.

Exit codes: 0 good, 2 bad input. Machine-readable results are one JSON object on stdout;
everything for people goes to stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.data.cli import app as bag_app
from sparseoccvla.data.cli import data_app
from sparseoccvla.engines.cli import app as engine_app
from sparseoccvla.engines.cli import export_command
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.cli import app as eval_app
from sparseoccvla.metrics.cli import app as score_app
from sparseoccvla.training.cli import train_command
from sparseoccvla.world.cli import app as world_app

app = typer.Typer(
    name="sparseoccvla",
    help="Sparse occupancy, language reasoning and planning from cameras.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bag_app, name="bag")
app.add_typer(data_app, name="data")
app.add_typer(score_app, name="score")
app.add_typer(engine_app, name="engine")
app.command("export")(export_command)
app.add_typer(eval_app, name="eval")
app.add_typer(world_app, name="world")
app.command("train")(train_command)


@app.command("import")
def import_model(
    kind: Annotated[str, typer.Argument(help="Whose checkpoint: opus or sparseworld.")],
    checkpoint: Annotated[Path, typer.Argument(help="An mmcv file; nothing in it is executed.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the model.")],
) -> None:
    """Make a model whose encoder is a public checkpoint's; the stages behind it stay untrained."""
    from sparseoccvla.import_weights import import_encoder

    manifest, report = import_encoder(kind, checkpoint, out)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        json.dumps(
            {
                "model": str(out),
                "model_id": manifest.model_id,
                "used": len(report.used),
                "checked": report.checked,
                "unused": report.unused,
                "notes": report.notes,
            }
        )
    )


@app.command()
def memory(
    model: Annotated[str, typer.Option("--model", help="A model folder, or a name under models/.")],
    profile: Annotated[str, typer.Option("--profile", help="16gb, 24gb or 48gb of GPU memory.")],
    reasoner: Annotated[str, typer.Option("--reasoner", help="on, or off to run without it.")] = "on",
) -> None:
    """Count what a model takes, part by part, and refuse a profile it does not fit. Loads nothing."""
    from sparseoccvla.footprint import GIB, check_fits, footprint
    from sparseoccvla.model import read_config
    from sparseoccvla.runtime.manifest import read_manifest

    if reasoner not in ("on", "off"):
        raise InputError(f"--reasoner is {reasoner!r}, wanted on or off")
    config = read_config(read_manifest(model).file("config.json"))
    parts = footprint(config, reasoner == "on")
    for part in parts:
        print(f"{part.size_bytes / GIB:8.2f} GiB  {part.stage:9} {part.name}", file=sys.stderr)
    total = sum(part.size_bytes for part in parts)
    print(f"{total / GIB:8.2f} GiB  in all", file=sys.stderr)
    check_fits(parts, profile)
    print(json.dumps({"profile": profile, "bytes": total, "parts": [vars(part) for part in parts]}))


def main() -> None:
    """Run the command line; an `InputError` becomes one line on stderr and exit code 2."""
    try:
        app(prog_name="sparseoccvla")
    except InputError as error:
        print(f"sparseoccvla: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
