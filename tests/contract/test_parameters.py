"""Parameter files only override what exists; every setting explains itself."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from sparseoccvla import config
from tools.parameters_doc import PATH, names, text

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    item
    for item in vars(config).values()
    if isinstance(item, type) and is_dataclass(item) and issubclass(item, config.Checked)
]


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_overrides_only_parameters_that_exist(path):
    for node, content in yaml.safe_load(path.read_text()).items():
        given = set(content["ros__parameters"])
        assert given <= names(node), f"{path.name}: {given - names(node)}"


def test_the_document_is_that_of_the_settings():
    assert PATH.read_text() == text(), "run: python -m tools.parameters_doc"


@pytest.mark.parametrize("group", CONFIGS, ids=lambda group: group.__name__)
def test_every_setting_is_read_somewhere(group):
    """A parameter that nothing reads is a lie."""
    files = [*(ROOT / "sparseoccvla").rglob("*.py"), *(ROOT / "sparseoccvla_ros").glob("*.py")]
    code = "".join(path.read_text() for path in files if path.name not in ("config.py", "budgets.py"))
    unread = [item.name for item in fields(group) if f".{item.name}" not in code]
    assert unread == []


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
