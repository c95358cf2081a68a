"""docs/parameters.md, made from sparseoccvla/config.py.

python -m tools.parameters_doc      writes it
"""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path

from sparseoccvla import config

PATH = Path(__file__).resolve().parents[1] / "docs" / "parameters.md"
_EVERYWHERE = {"watch": config.WatchConfig}
# Groups of parameters by node, with the prefix under which the node declares them.
NODES: dict[str, dict[str, type]] = {
    "encoder_node": {
        "": config.ModelSource,
        "sync": config.SynchronizerConfig,
        "memory": config.MemoryConfig,
        "odometry": config.OdometryConfig,
        "camera": config.CameraTopicsConfig,
        "frames": config.FramesConfig,
        **_EVERYWHERE,
    },
    "reasoner_node": {"": config.ModelSource, "reasoner": config.ReasonerNodeConfig, **_EVERYWHERE},
    "planner_node": {
        "": config.ModelSource,
        "reasoning": config.ReasoningConfig,
        "odometry": config.OdometryConfig,
        **_EVERYWHERE,
    },
    "guard_node": {"guard": config.GuardConfig, "odometry": config.OdometryConfig, **_EVERYWHERE},
    "replay_node": {"": config.ReplayConfig, **_EVERYWHERE},
    "visualizer_node": {
        "visualizer": config.VisualizerConfig,
        "camera": config.CameraTopicsConfig,
        **_EVERYWHERE,
    },
}


def names(node: str) -> set[str]:
    """Every parameter of a node that comes from the settings."""
    groups = NODES[node].items()
    return {f"{prefix}.{item.name}".lstrip(".") for prefix, group in groups for item in fields(group)}


def _row(prefix: str, item: Field) -> str:
    meta, default = item.metadata, item.default
    allowed = " ".join(meta["choices"]) or (
        f"{meta['low']:g} to {meta['high']:g}" if meta["low"] is not None and meta["high"] is not None else ""
    )
    shown = list(default) if isinstance(default, tuple) else default
    name = f"{prefix}.{item.name}".lstrip(".")
    return f"| `{name}` | {shown} | {meta['unit']} | {allowed} | {meta['doc']} |"


def text() -> str:
    """The whole document."""
    lines = [
        "# Parameters",
        "",
        "Made from `sparseoccvla/config.py` by `python -m tools.parameters_doc`. All are read when a node is",
        "configured; a value out of range or an unknown name is an error. Every node also has `autostart`.",
    ]
    seen: dict[type, str] = {}
    for node, groups in NODES.items():
        lines += ["", f"## {node}", ""]
        for prefix, group in groups.items():
            if group in seen:
                lines += [f"`{prefix or group.__name__}`: as in {seen[group]}.", ""]
                continue
            seen[group] = node
            lines += [str(group.__doc__).split("\n")[0], ""]
            lines += ["| parameter | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
            lines += [_row(prefix, item) for item in fields(group)]
            lines += [""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
