"""Parameter files only override what exists; every setting explains itself."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from sparseoccvla import config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    item
    for item in vars(config).values()
    if isinstance(item, type) and is_dataclass(item) and issubclass(item, config.Checked)
]
# Prefix of each group of parameters, as the nodes declare them.
GROUPS = {
    "encoder_node": {
        "": config.ModelSource,
        "sync": config.SynchronizerConfig,
        "memory": config.MemoryConfig,
        "odometry": config.OdometryConfig,
        "camera": config.CameraTopicsConfig,
        "frames": config.FramesConfig,
        "watch": config.WatchConfig,
    },
}


def names(groups: dict[str, type]) -> set[str]:
    return {f"{prefix}.{f.name}".lstrip(".") for prefix, group in groups.items() for f in fields(group)}


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_overrides_only_parameters_that_exist(path):
    for node, content in yaml.safe_load(path.read_text()).items():
        given = set(content["ros__parameters"])
        assert given <= names(GROUPS[node]), f"{path.name}: {given - names(GROUPS[node])}"


@pytest.mark.parametrize("group", CONFIGS, ids=lambda group: group.__name__)
def test_every_setting_has_a_text_and_numbers_have_a_range(group):
    for item in fields(group):
        assert item.metadata["doc"].endswith("."), item.name
        if isinstance(item.default, (int, float)) and not isinstance(item.default, bool):
            assert item.metadata["low"] is not None, item.name
            assert item.metadata["high"] is not None, item.name


def test_a_value_out_of_range_is_refused_by_name():
    wanted = r"SynchronizerConfig\.deadline_s is 9.0 s, wanted 0.0 to 5.0 s"
    with pytest.raises(config.ConfigError, match=wanted):
        config.SynchronizerConfig(deadline_s=9.0)


def test_an_unknown_choice_is_refused_with_the_choices():
    with pytest.raises(
        config.ConfigError, match="policy is 'wait', wanted one of drop, hold, blank, partial"
    ):
        config.SynchronizerConfig(policy="wait")
