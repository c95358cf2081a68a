"""RIHS01 hashes of our interfaces, computed by rosbags from the .msg and .action texts alone.

    python -m tools.interface_hashes       records them in tests/contract/interface_hashes.json

A hash is what two nodes compare before they talk. It changes when a field is added, renamed or moved;
until 1.0 fields may be appended: record anew, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = ROOT / "ros2_ws" / "src" / "sparseoccvla_msgs"
RECORD = ROOT / "tests" / "contract" / "interface_hashes.json"

# What rosidl makes of an action (REP-2011): rosbags knows messages only, so the derived types are
# written out. {a} is the action's name, {goal}, {result} and {feedback} its three sections.
SERVICE = {
    "{a}_{s}_Event": (
        "service_msgs/ServiceEventInfo info\n{a}_{s}_Request[<=1] request\n{a}_{s}_Response[<=1] response"
    ),
    "{a}_{s}": (
        "{a}_{s}_Request request_message\n{a}_{s}_Response response_message\n{a}_{s}_Event event_message"
    ),
}
ACTION = {
    "{a}_Goal": "{goal}",
    "{a}_Result": "{result}",
    "{a}_Feedback": "{feedback}",
    "{a}_SendGoal_Request": "unique_identifier_msgs/UUID goal_id\n{a}_Goal goal",
    "{a}_SendGoal_Response": "bool accepted\nbuiltin_interfaces/Time stamp",
    "{a}_GetResult_Request": "unique_identifier_msgs/UUID goal_id",
    "{a}_GetResult_Response": "int8 status\n{a}_Result result",
    **{
        k.replace("{s}", s): v.replace("{s}", s)
        for s in ("SendGoal", "GetResult")
        for k, v in SERVICE.items()
    },
    "{a}_FeedbackMessage": "unique_identifier_msgs/UUID goal_id\n{a}_Feedback feedback",
    "{a}": (
        "{a}_Goal goal\n{a}_Result result\n{a}_Feedback feedback\n{a}_SendGoal send_goal_service\n"
        "{a}_GetResult get_result_service\n{a}_FeedbackMessage feedback_message"
    ),
}

EVENT_INFO = "service_msgs/msg/ServiceEventInfo"
EVENT_INFO_TEXT = (
    "uint8 event_type\nbuiltin_interfaces/Time stamp\nuint8[16] client_gid\nint64 sequence_number"
)


def interface_texts(folder: Path = MESSAGES) -> dict[str, str]:
    """Full type name: text, for every message and every type that an action stands for."""
    texts = {f"{folder.name}/msg/{path.stem}": path.read_text() for path in folder.glob("msg/*.msg")}
    for path in folder.glob("action/*.action"):
        goal, result, feedback = path.read_text().split("\n---\n")
        name = f"{folder.name}/action/{path.stem}"
        for derived, text in ACTION.items():
            full_name = derived.format(a=name)
            texts[full_name] = text.format(a=name, goal=goal, result=result, feedback=feedback)
    return texts


def interface_hashes(texts: dict[str, str]) -> dict[str, str]:
    """Full type name: RIHS01 hash, sorted by name."""
    store = get_typestore(Stores.ROS2_JAZZY)
    # rosidl reads `char` as uint8, rosbags 0.11 does not; this type is the only one here that has it.
    del store.fielddefs[EVENT_INFO]
    types = {}
    for name, text in {EVENT_INFO: EVENT_INFO_TEXT, **texts}.items():
        types.update(get_types_from_msg(text, name))
    store.register(types)
    return {name: store.hash_rihs01(name) for name in sorted(texts)}


def main() -> None:
    hashes = interface_hashes(interface_texts())
    RECORD.write_text(json.dumps(hashes, indent=2) + "\n")
    print(f"{RECORD}: {len(hashes)} types", file=sys.stderr)


if __name__ == "__main__":
    main()
