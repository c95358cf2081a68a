"""`sparseoccvla score`: anyone's predictions under a named protocol, one JSON object on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.metrics.language import Tokens
from sparseoccvla.metrics.occupancy import Convention, Mask
from sparseoccvla.metrics.planning import PlanningProtocol
from sparseoccvla.metrics.scoring import (
    Report,
    score_language,
    score_occupancy,
    score_planning,
    warnings_of,
)

app = typer.Typer(help="Score predictions from files under a named protocol.", no_args_is_help=True)


@app.command()
def language(
    pairs: Annotated[Path, typer.Option(help='JSON: {"pairs": [{"prediction", "reference(s)"}]}.')],
    tokens: Annotated[Tokens, typer.Option(help="How sentences become tokens.")] = Tokens.RAW,
) -> None:
    """BLEU, ROUGE-L, CIDEr and, with nltk's data, METEOR."""
    report, no_meteor = score_language(pairs, tokens)
    _print(report)
    if no_meteor:
        print(no_meteor, file=sys.stderr)


@app.command()
def occupancy(
    case: Annotated[list[Path], typer.Option(help=".npz with pred, gt, mask_*; may be repeated.")],
    mask: Annotated[Mask, typer.Option(help="Which voxels count.")],
    convention: Annotated[Convention, typer.Option(help="What an absent class is worth.")],
    rays: Annotated[
        Path | None, typer.Option(help='JSON: {"origins_ego_m": [[x, y, z], ...]}; adds RayIoU.')
    ] = None,
) -> None:
    """Compute mIoU and IoU, and RayIoU from given origins, as fractions."""
    _print(score_occupancy(case, mask, convention, rays))


@app.command()
def planning(
    cases: Annotated[Path, typer.Option(help=".npz with pred_I, gt_I and obstacles for each case I.")],
    protocol: Annotated[PlanningProtocol, typer.Option(help="Whose rules count.")],
) -> None:
    """L2 in meters and collision as a fraction."""
    _print(score_planning(cases, protocol))


def _print(report: Report) -> None:
    print(report.as_json())
    for line in warnings_of(report):
        print(line, file=sys.stderr)
