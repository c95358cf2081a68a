"""The runner of checks: every group runs, a failure is seen, and so is a process left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import checks
from tools.checks import CHECK, COLLECTIONS, GROUPS, Group

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of programs to stand for .venv/bin."""
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))

    def add(name: str, script: str) -> Group:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        return Group((name,))

    return add


def test_a_group_passes_when_its_program_does(programs):
    assert checks.run_group(programs("good", "exit 0")) == ""


def test_a_failing_program_is_a_fault(programs):
    assert checks.run_group(programs("bad", "exit 3")) == "exit code 3"


def test_a_group_without_tests_is_a_fault(programs):
    assert checks.run_group(programs("empty", "exit 5")) == "no tests found"


def test_all_groups_run_and_one_failure_fails_them_all(programs, monkeypatch, capsys):
    groups = {"one": programs("one", "exit 1"), "two": programs("two", "exit 0")}
    monkeypatch.setattr(checks, "GROUPS", groups)
    monkeypatch.setattr(checks, "adopt_orphans", lambda: None)
    monkeypatch.setattr(checks.sys, "argv", ["checks", "one", "two"])
    assert checks.main() == 1
    table = capsys.readouterr().out
    assert "FAILED: exit code 1" in table
    assert "passed" in table
    monkeypatch.setattr(checks.sys, "argv", ["checks", "two"])
    assert checks.main() == 0


def test_an_unknown_group_is_named(monkeypatch, capsys):
    monkeypatch.setattr(checks.sys, "argv", ["checks", "unti"])
    assert checks.main() == 2
    assert "unknown group ['unti']" in capsys.readouterr().err


def test_a_process_left_behind_is_ended_and_named():
    """In a process of its own, since adopting orphans cannot be undone."""
    code = (
        "import os, subprocess, sys\n"
        "from tools import checks\n"
        "checks.adopt_orphans()\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 987 & sleep 0.3'], check=True)\n"
        "print(checks.end_orphans(), checks.end_orphans())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == "['sleep 987'] []"


def test_shared_memory_left_behind_is_named(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path)
    (tmp_path / "fastrtps_before").touch()
    group = programs("leaky", f"touch {tmp_path}/fastrtps_1 {tmp_path}/torch_2")
    assert checks.run_group(group) == "left behind: fastrtps_1"


def test_the_gate_needs_no_ros_and_the_whole_holds_it():
    assert not any(GROUPS[name].ros for name in CHECK)
    assert set(CHECK) < set(COLLECTIONS["test"])


def test_every_folder_of_tests_belongs_to_a_group():
    paths = {word for group in GROUPS.values() for word in group.command if word.startswith("tests/")}
    folders = {
        f"tests/{path.parent.name}"
        for path in (ROOT / "tests").glob("*/test_*.py")
        if os.access(path, os.R_OK)
    }
    assert folders <= paths
