"""The messages keep their shape, and their texts say what a reader needs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sparseoccvla.contracts import CameraState, Command, PlanStatus, Source
from tools.interface_hashes import MESSAGES, RECORD, ROOT, interface_hashes, interface_texts

INSTALLED = ROOT / "ros2_ws" / "install"
UNITS = {"m", "s", "m/s", "m/s^2", "rad", "rad/s", "px"}
TEXTS = sorted([*MESSAGES.glob("msg/*.msg"), *MESSAGES.glob("action/*.action")])
RECORDED: dict[str, str] = json.loads(RECORD.read_text())
FIELD = re.compile(r"^([\w/]+(?:\[[^\]]*\])?)\s+([a-z]\w*)\s*(?:#\s*(.*))?$")


def ids(path: Path) -> str:
    return path.stem


def head(text: str) -> str:
    """The comment before anything else."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def fields(text: str) -> Iterator[tuple[str, str, str]]:
    """(type, name, comment) of every field."""
    for line in text.splitlines():
        if match := FIELD.match(line):
            yield match[1], match[2], match[3] or ""


def constants(name: str, prefix: str = "") -> dict[str, int]:
    text = (MESSAGES / "msg" / f"{name}.msg").read_text()
    pairs = re.findall(r"^uint\d+ ([A-Z]\w*)=(\d+)", text, re.MULTILINE)
    return {key.removeprefix(prefix): int(value) for key, value in pairs if key.startswith(prefix)}


# Shape


def test_hashes_are_the_recorded_ones():
    changed = (
        "a field changed; if that is meant: python -m tools.interface_hashes, and a line in CHANGELOG.md"
    )
    assert interface_hashes(interface_texts()) == RECORDED, changed


def test_a_renamed_field_changes_the_hash_of_every_type_that_holds_it():
    texts = interface_texts()
    camera = "sparseoccvla_msgs/msg/CameraStatus"
    texts[camera] = texts[camera].replace("uint8 state", "uint8 condition")
    changed = {name for name, value in interface_hashes(texts).items() if value != RECORDED[name]}
    assert changed == {camera, "sparseoccvla_msgs/msg/OccupancyQueries"}


def test_the_generators_of_ros_compute_the_recorded_hashes():
    """Three computations agree: the record, rosbags, and the generators' json of the installed package."""
    described = sorted(INSTALLED.glob("**/share/sparseoccvla_msgs/*/*.json"))
    if not described:
        pytest.skip(f"no built messages in {INSTALLED}; make setup")
    generated = {}
    for path in described:
        for entry in json.loads(path.read_text())["type_hashes"]:
            if entry["type_name"].startswith("sparseoccvla_msgs/"):
                generated[entry["type_name"]] = entry["hash_string"]
    assert generated == RECORDED


def test_cmake_builds_every_interface():
    listed = re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (MESSAGES / "CMakeLists.txt").read_text())
    assert listed == sorted(str(path.relative_to(MESSAGES)) for path in TEXTS)


def test_cmake_and_the_manifest_name_the_packages_of_every_field():
    used = {kind.split("/")[0] for path in TEXTS for kind, _, _ in fields(path.read_text()) if "/" in kind}
    cmake = (MESSAGES / "CMakeLists.txt").read_text()
    dependencies = re.search(r"DEPENDENCIES ([\w ]+)\)", " ".join(cmake.split()).replace(" )", ")"))
    assert dependencies
    listed = set(dependencies[1].split())
    manifest = {tag.text for tag in ElementTree.parse(MESSAGES / "package.xml").getroot().iter("depend")}
    assert used <= listed
    assert listed <= set(re.findall(r"find_package\((\w+)", cmake))
    assert listed | {"action_msgs"} <= manifest


@pytest.mark.parametrize(
    ("enum", "message", "prefix"),
    [
        (Command, "DrivingCommand", ""),
        (CameraState, "CameraStatus", ""),
        (PlanStatus, "PlannedTrajectory", "STATUS_"),
    ],
)
def test_numbers_of_an_enum_are_those_of_its_message(enum, message, prefix):
    assert constants(message, prefix) == {name: int(value) for name, value in enum.__members__.items()}


def test_numbers_of_the_source_are_those_of_its_message():
    named = {name: n for name, n in constants("PlannedTrajectory").items() if not name.startswith("STATUS_")}
    assert named == {source.name: int(source) for source in Source}


# Documentation


@pytest.mark.parametrize("path", TEXTS, ids=ids)
def test_the_head_says_who_publishes_it(path):
    text = head(path.read_text())
    assert re.search(r"Publisher: \w+|Part of \w+|Served by \w+", text), text


@pytest.mark.parametrize("path", TEXTS, ids=ids)
def test_the_head_says_what_stamp_and_frame_mean(path):
    text = path.read_text()
    if "std_msgs/Header header" in text and "header" not in head(text):
        # The comment on the field itself will do, when it is short.
        comment = next(comment for kind, _, comment in fields(text) if kind == "std_msgs/Header")
        assert comment, f"{path.name}: what are header.stamp and header.frame_id?"


@pytest.mark.parametrize("path", TEXTS, ids=ids)
def test_square_brackets_in_comments_hold_units_only(path):
    """rosidl makes an @unit of the first pair; a shape or a range goes in round ones."""
    comments = " ".join(re.findall(r"#(.*)", path.read_text()))
    assert set(re.findall(r"\[([^\]]*)\]", comments)) - {""} <= UNITS


@pytest.mark.parametrize("path", TEXTS, ids=ids)
def test_every_number_with_a_fraction_has_a_unit_or_a_range(path):
    for kind, name, comment in fields(path.read_text()):
        if kind.startswith("float"):
            assert re.search(r"\[\S+\]|\bin 0 to 1\b", comment), f"{path.name}: {name} has neither"


def test_the_documentation_tests_see_a_bad_message():
    bad = "float32 width   # in [0..1]\nfloat32 height\n"
    assert set(re.findall(r"\[([^\]]*)\]", bad)) - UNITS
    assert [(name, comment) for _, name, comment in fields(bad)][1] == ("height", "")
    assert not head(bad)
