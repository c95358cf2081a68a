"""What the documents say is what the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.readme_numbers import table, with_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_figures_in_readme_are_those_of_the_committed_json():
    assert with_table(README) == README, "run: python -m tools.readme_numbers"


def test_a_changed_figure_in_readme_would_be_noticed():
    assert with_table(README.replace(" ms, p95", "1 ms, p95")) == README
    assert " ms, p95" in table()


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))],
)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{document} links to {target}"


def test_make_targets_in_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (demo|test|check|setup|bench)\b", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_rviz_shows_topics_that_are_published():
    shown = set(re.findall(r"Value: (\S+/\S+)", (ROOT / "config/rviz/full_stack.rviz").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "sparseoccvla_ros").glob("*_node.py"))
    for topic in shown:
        assert f'"{topic}"' in sources or f'"{topic}/compressed"' in sources, topic
