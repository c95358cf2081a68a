"""Results files as Markdown tables: the same for `eval`'s report and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparseoccvla.contracts import CLASS_NAMES, FORECAST_HORIZONS_S
from sparseoccvla.metrics.planning import HORIZON_STEPS, PlanningProtocol
from sparseoccvla.metrics.results import Results

_HORIZONS = [f"{horizon:g}s" for horizon in FORECAST_HORIZONS_S]
_TEXT_SCORES = ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")


def write_report(path: Path, results: Sequence[Results]) -> None:
    """Write `markdown` of results to a file."""
    path.write_text(markdown(results), encoding="utf-8")


def markdown(results: Sequence[Results]) -> str:
    """One section for each kind of figure, with what it was made of."""
    lines: list[str] = []
    for result in results:
        lines += [f"## {result.kind.capitalize()}", "", *_origin(result), ""]
        match result.kind:
            case "occupancy":
                lines += _occupancy(result.figures)
            case "forecast":
                lines += _forecast(result.figures)
            case "planning":
                lines += _planning(result.figures)
            case "language":
                lines += _language(result.figures)
            case "bag":
                lines += _bag(result.figures)
        lines += [*_differences(result.figures["differences"]), *_skipped(result), ""]
    return "\n".join(lines).rstrip() + "\n"


def _origin(result: Results) -> Iterator[str]:
    trained = result.figures.get("trained", {})
    untrained = [stage for stage, what in trained.items() if not what]
    if untrained:
        yield f"**Untrained: {', '.join(untrained)}. Random weights say nothing about the method.**"
        yield ""
    data = result.data
    yield (
        f"Model `{result.model_id}`; {data.name} {data.version}, split {data.split}, seeds "
        f"{', '.join(map(str, data.seeds)) or 'none'}; {result.protocol}; n = {result.n}; "
        f"`{result.command}`"
    )


def _occupancy(figures: dict[str, Any]) -> Iterator[str]:
    rows = figures["rows"]
    yield from _table(
        ["row", "mIoU", "of objects", "IoU", "RayIoU", "RayIoU n", "mIoU over prior's"],
        [
            [
                name,
                _number(row["mIoU"]),
                _number(row["mIoU_objects"]),
                _number(row["IoU"]),
                _number(row.get("RayIoU")),
                str(row["rays_keyframes"]),
                _number(row.get("mIoU_over_prior"), 2),
            ]
            for name, row in rows.items()
        ],
    )
    support = next(iter(rows.values()))["per_class_voxels"]
    yield from _table(
        ["class", "voxels", *rows],
        [
            [
                name,
                f"{support[label]:,}",
                *(_number(row["per_class_iou"][label]) for row in rows.values()),
            ]
            for label, name in enumerate(CLASS_NAMES)
        ],
    )


def _forecast(figures: dict[str, Any]) -> Iterator[str]:
    titles = {"mIoU": "mIoU", "mIoU_movable": "movable", "IoU": "IoU"}
    yield from _table(
        ["row", *(f"{title} {h}" for title in titles.values() for h in _HORIZONS)],
        [
            [name, *(_number(row[h][key]) for key in titles for h in _HORIZONS)]
            for name, row in figures["rows"].items()
        ],
    )


def _planning(figures: dict[str, Any]) -> Iterator[str]:
    yield f"Commands: {', '.join(figures['command_sources'])}."
    yield ""
    horizons = list(HORIZON_STEPS)
    for subset, rows in figures["rows"].items():
        yield from _table(
            [subset, "n", *(f"L2 {h} [m]" for h in horizons), "avg", "collision avg [%]", "any in 3 s [%]"],
            [
                [
                    name,
                    str(row["n"]),
                    *(_number(row[f"L2_{h}"], 2) for h in (*horizons, "avg")),
                    _percent(row["obj_box_col_avg"]),
                    _percent(row["obj_box_col_any_3s"]),
                ]
                for name, row in rows.items()
            ],
        )
        driven = next(iter(rows.values()))["driven_col_per_step"]
        yield (
            f"The driven box itself hits something at {_percent(sum(driven) / len(driven))} % of the steps; "
            "these are left out of every row."
        )
        yield ""
        yield from _table(
            [f"{subset}: L2 avg [m] / collision avg [%]", *PlanningProtocol],
            [
                [name, *(_short(row["protocols"].get(protocol)) for protocol in PlanningProtocol)]
                for name, row in rows.items()
            ],
        )
    if figures["by_hazard"]:
        yield from _table(
            ["event frames with a", "n", "L2 avg [m]", "L2 3s [m]", "any in 3 s [%]"],
            [
                [
                    name,
                    str(row["n"]),
                    _number(row["L2_avg"], 2),
                    _number(row["L2_3s"], 2),
                    _percent(row["obj_box_col_any_3s"]),
                ]
                for name, row in figures["by_hazard"].items()
            ],
        )
    yield from _table(
        ["anchor choice", "n", "right [%]", "farther than the best [m]", "calibration error"],
        [
            [
                f"{name}, {subset}",
                str(row["n"]),
                _percent(row["accuracy"]),
                _number(row["regret_m"], 2),
                _number(row["expected_calibration_error"]),
            ]
            for subset, rows in figures["anchors"].items()
            for name, row in rows.items()
        ],
    )
    yield from _effects(figures["cause_and_effect"])
    yield from _table(
        ["consecutive plans", "overlap [m]", "at its end [m]", "anchor switches per s"],
        [
            [
                name,
                _number(row["overlap_m"], 2),
                _number(row["final_overlap_m"], 2),
                _number(row["anchor_switches_per_s"], 2),
            ]
            for name, row in figures["consistency"].items()
        ],
    )


def _effects(figures: dict[str, Any]) -> Iterator[str]:
    """How many plans change with the pictures."""
    if not figures["n"]:
        yield f"Cause and effect: {figures.get('skipped', 'none of these keyframes is edited')}."
        yield ""
        return
    removed, irrelevant = figures["hazard_removed"], figures["irrelevant"]
    # Absent from results of before the driver's own changes were counted.
    acted_on = figures.get("hazard_removed_expert_changes")
    yield (
        f"A plan changes if a waypoint moves by more than {figures['changed_m']:g} m; "
        f"{figures['hidden']} hazards hidden at t0 are left out. To what the driver would do without the "
        f"hazard plans are {_number(figures['off_m_with_hazard'], 2)} m off with it in the pictures, "
        f"{_number(figures['off_m_without'], 2)} m without."
    )
    yield ""
    yield from _table(
        ["plans that change [%]", "n", *(f"by {threshold}" for threshold in removed["changed"])],
        [
            [name, str(row["n"]), *(_percent(share) for share in row["changed"].values())]
            for name, row in (
                ("hazard removed", removed),
                *([("hazard removed, the driver's own path changes", acted_on)] if acted_on else []),
                ("irrelevant edit", irrelevant),
            )
        ],
    )
    yield from _table(
        ["edit", "n", "changed [%]"],
        [
            [f"{name}: {kind}", str(found["n"]), _percent(found["changed"])]
            for name, row in (("without", removed), ("other", irrelevant))
            for kind, found in row["by_kind"].items()
        ],
    )


def _short(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "-"
    return f"{_number(figures['L2_avg'], 2)} / {_percent(figures['obj_box_col_avg'])}"


def _language(figures: dict[str, Any]) -> Iterator[str]:
    rows = figures["rows"]
    texts = sorted({key for row in rows.values() for key in row if not key.startswith("closed")})
    if texts:
        yield from _table(
            ["texts", "n", *_TEXT_SCORES],
            [
                [f"{kind}: {name}", str(row[kind]["n"]), *(_number(row[kind][s]) for s in _TEXT_SCORES)]
                for kind in texts
                for name, row in rows.items()
            ],
        )
    for key in ("closed", "closed, held-out wording"):
        answered = {name: row[key] for name, row in rows.items() if key in row}
        if not answered:
            continue
        types = next(iter(answered.values()))["types"]
        yield from _table(
            [f"{key}: right [%]", "n", "most frequent answer", *answered],
            [
                [
                    kind,
                    str(found["n"]),
                    _percent(found["majority"]),
                    *(_percent(row["types"][kind]["accuracy"]) for row in answered.values()),
                ]
                for kind, found in types.items()
            ],
        )


def _bag(figures: dict[str, Any]) -> Iterator[str]:
    horizons = list(HORIZON_STEPS)
    for title, key in (("Commands", "command_sources"), ("Sent", "trajectories"), ("Live run", "follow")):
        told = figures.get(key)
        if isinstance(told, dict):
            told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in told.items()]
        if told:
            yield f"{title}: {', '.join(told)}."
            yield ""
    yield from _table(
        ["row", "n", *(f"L2 {h} [m]" for h in (*horizons, "avg"))],
        [
            [name, str(row["n"]), *(_number(row[f"L2_{h}"], 2) for h in (*horizons, "avg"))]
            for name, row in figures["rows"].items()
        ],
    )


def _differences(differences: dict[str, Any]) -> Iterator[str]:
    rows = [
        [
            what,
            figure,
            f"{found['value']:.3f}",
            f"{found['low']:.3f} to {found['high']:.3f}",
            "yes" if found["excludes_zero"] else "no",
        ]
        for what, figures in differences.items()
        for figure, found in figures.items()
    ]
    if rows:
        yield from _table(["difference", "of", "value", "95 % by scene", "excludes zero"], rows)


def _skipped(result: Results) -> Iterator[str]:
    reasons = result.figures["skipped_reasons"]
    if reasons:
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        yield f"Not scored: {told}."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("---" if place == 0 else "--:" for place in range(len(header))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
