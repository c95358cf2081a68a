"""What a generated root says agrees with its tables and labels, by an audit that shares no code with it."""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.world.generate import generate
from sparseoccvla.world.roots import Request, RootOptions
from sparseoccvla.world.style import CITIES
from tests import world_audit
from tests.world_audit import Finding, audit

SCENES, DURATION_S = 3, 5.0  # of each city: 60 keyframes in all
FLIPPED = 12  # keyframes


def test_the_audit_shares_no_code_with_what_it_audits():
    tree = ast.parse(Path(world_audit.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])
    }
    allowed = {"__future__", "collections", "dataclasses", "functools", "json", "numpy", "pathlib"}
    assert imported <= {*allowed, "PIL", "re", "typing"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "root"
    options = RootOptions(352, 128, DURATION_S, lidar=False)
    for city in CITIES:
        generate(folder, options, Request(city, "val", 4, SCENES))
    return folder


@pytest.fixture(scope="module")
def findings(root) -> tuple[list[Finding], list[Finding]]:
    return audit(root)


@pytest.mark.slow
def test_of_a_thousand_answers_and_statements_none_is_false(findings):
    closed, opened = findings
    assert len(closed) >= 500
    assert len(closed) + len(opened) >= 1000
    assert [finding for finding in (*closed, *opened) if finding.false] == []
    assert {finding.type for finding in closed} >= {
        *("objects", "side", "count", "color", "distance", "motion"),
        *("action", "speed", "hazard", "what_if", "road", "ground"),
    }


@pytest.mark.slow
def test_every_planted_false_answer_is_found(root, findings):
    """Other answers of the same type, written into the root's files."""
    closed, _ = findings
    answers = defaultdict(set)
    for finding in closed:
        answers[finding.type].add(finding.said)
    rng = np.random.default_rng(0)
    samples = sorted({finding.sample for finding in closed})
    chosen = [str(sample) for sample in rng.choice(samples, FLIPPED, replace=False)]
    planted = 0
    for sample in chosen:
        [file] = (root / "vqa").glob(f"*/{sample}.json")
        said = json.loads(file.read_bytes())
        for qa in said:
            if "type" in qa:
                qa["answer"] = str(rng.choice(sorted(answers[qa["type"]] - {qa["answer"]})))
                planted += 1
        file.write_text(json.dumps(said))
    found, _ = audit(root, chosen)
    assert planted > 50
    assert len(found) == planted
    assert all(finding.false for finding in found)
