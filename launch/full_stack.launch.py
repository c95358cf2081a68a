"""The whole stack: encoder, reasoner, planner, guard, and what feeds and shows them.

    ros2 launch sparseoccvla full_stack.launch.py                    # waits for cameras
    ros2 launch sparseoccvla full_stack.launch.py bag:=demo          # a synthetic drive
    ros2 launch sparseoccvla full_stack.launch.py bag:=B rviz:=true  # any bag with the topics

Every argument is listed by `--show-args`. Nodes are respawned when they die, and die with launch:
launch itself does not end its children when it is killed, so the kernel is asked to (setpriv).
"""

import json
import os
import shutil
from pathlib import Path
from tempfile import NamedTemporaryFile

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

PACKAGE = "sparseoccvla"
ARGUMENTS = {
    "bag": ("", "Bag to play: a folder, `demo` for a synthetic drive, empty to wait for cameras."),
    "rate": ("1.0", "Speed at which the bag is played."),
    "loop": ("false", "Play the bag again and again."),
    "backend": ("torch", "Who computes: torch, onnxruntime, tensorrt, or fake (no network)."),
    "engines": ("", "Folder of `sparseoccvla export` or `engine build`; empty: export's own place."),
    "precision": ("fp32", "Arithmetic of torch: fp32, bf16, or auto: bf16 where the hardware has it."),
    "model": ("tiny", "Model: a name under models/ or a folder with manifest.json."),
    "reasoner": ("on", "on, or off: the planner then uses the null token."),
    "reasoning_policy": ("latest", "latest, same_frame or off: how a plan is paired with reasoning."),
    "composed": ("false", "Encoder, reasoner and planner in one process, with no messages between them."),
    "visualizer": ("true", "Run visualizer_node."),
    "rviz": ("false", "Open RViz with config/rviz/full_stack.rviz."),
    "use_sim_time": ("auto", "Follow /clock; auto: when a bag is played from here."),
    "camera_reliability": ("auto", "best_effort or reliable; auto: reliable for a bag played from here."),
    "params_file": ("", "YAML with parameters that override the defaults."),
    "namespace": ("", "Namespace of all nodes and relative topics."),
    "respawn": ("true", "Start a node again when it dies."),
    "exit_with_bag": ("false", "End everything when the bag ends."),
    "log_level": ("info", "debug, info, warn, error."),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_stack)])


def _stack(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    args = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    share = Path(get_package_share_directory(PACKAGE))
    bag = args["bag"]
    sim_time = bool(bag) if args["use_sim_time"] == "auto" else _flag(args, "use_sim_time")
    reliability = args["camera_reliability"]
    if reliability == "auto":
        # A player bursts six pictures at once: over a loaded loopback best effort would lose some.
        reliability = "reliable" if bag else "best_effort"
    camera = {"camera.reliability": reliability}
    source = {name: args[name] for name in ("backend", "engines", "precision", "model")}
    policy = args["reasoning_policy"] if args["reasoner"] == "on" else "off"

    def node(executable: str, parameters: dict, **kwargs) -> Node:
        return _node(args, executable, {"use_sim_time": sim_time, **parameters}, **kwargs)

    stages = {
        "encoder_node": source | camera,
        "planner_node": source | {"reasoning.policy": policy},
    }
    if args["reasoner"] == "on":
        stages["reasoner_node"] = source
    if _flag(args, "composed"):
        nodes = [_composed(context, args, sim_time, stages)]
    else:
        nodes = [node(name, parameters) for name, parameters in stages.items()]
    nodes.append(node("guard_node", {}))
    if _flag(args, "visualizer"):
        nodes.append(node("visualizer_node", camera))
    if _flag(args, "rviz"):
        nodes.append(_rviz(share, sim_time))
    names = [name.removesuffix("_node") for name in stages]
    return nodes + (_player(args, bag, names) if bag else [])


def _flag(args: dict[str, str], name: str) -> bool:
    if args[name].lower() not in ("true", "false"):
        raise RuntimeError(f"launch argument {name} is {args[name]!r}, wanted true or false")
    return args[name].lower() == "true"


def _node(args: dict[str, str], executable: str, parameters: dict | str, **kwargs) -> Node:
    overrides = [args["params_file"]] if args["params_file"] else []
    return Node(
        package=PACKAGE,
        executable=executable,
        exec_name=executable,
        namespace=args["namespace"],
        # The file comes first: what is asked for on the command line wins.
        parameters=[*overrides, parameters],
        ros_arguments=["--log-level", args["log_level"]],
        output="screen",
        prefix=_die_with_launch(),
        sigterm_timeout="3",
        sigkill_timeout="3",
        **{"name": executable, "respawn": _flag(args, "respawn"), "respawn_delay": 1.0, **kwargs},
    )


def _composed(context: LaunchContext, args: dict[str, str], sim_time: bool, stages: dict[str, dict]) -> Node:
    """One process for nodes with parameters of their own, where launch knows one name for a process."""
    base = context.launch_configurations.get("ros_namespace")
    namespace = make_namespace_absolute(prefix_namespace(base, args["namespace"])).rstrip("/")
    parameters = {
        f"{namespace}/{name}": {"ros__parameters": {"use_sim_time": sim_time, **own}}
        for name, own in stages.items()
    }
    # As launch does with parameters of one node, the file is left for a respawn.
    with NamedTemporaryFile("w", prefix="launch_params_", suffix=".yaml", delete=False) as file:
        json.dump(parameters, file)  # JSON is YAML
    without = [] if "reasoner_node" in stages else ["--no-reasoner"]
    return _node(args, "composed_nodes", file.name, name=None, arguments=without)


def _die_with_launch() -> str | None:
    """Launch that is killed, or gets SIGTERM, leaves its children behind unless the kernel tells them."""
    return "setpriv --pdeathsig INT --" if shutil.which("setpriv") else None


def _player(args: dict[str, str], bag: str, wait_for: list[str]) -> list[LaunchDescriptionEntity]:
    """Replay `bag`; `demo` is made first, where the cache does not have it."""
    made = []
    if bag == "demo":
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        bag = str(cache / PACKAGE / "demo_bag")
        if not Path(bag).exists():
            made = [
                ExecuteProcess(
                    cmd=["sparseoccvla", "bag", "demo", "--out", bag],
                    name="make_demo_bag",
                    output="screen",
                    prefix=_die_with_launch(),
                )
            ]
    parameters = {
        "use_sim_time": False,
        "bag": bag,
        "rate": float(args["rate"]),
        "loop": _flag(args, "loop"),
        "wait_for": wait_for,
    }
    player = _node(args, "replay_node", parameters, respawn=False)
    actions: list[LaunchDescriptionEntity] = [player]
    if made:
        actions = [
            *made,
            RegisterEventHandler(OnProcessExit(target_action=made[0], on_exit=_when_made(player))),
        ]
    if _flag(args, "exit_with_bag"):
        # A moment for results of the last set to reach whoever records.
        goodbye = TimerAction(period=1.0, actions=[EmitEvent(event=Shutdown(reason="the bag has ended"))])
        actions.append(RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[goodbye])))
    return actions


def _when_made(player: Node):
    def on_exit(event, _context: LaunchContext) -> LaunchDescriptionEntity:
        if event.returncode == 0:
            return player
        return EmitEvent(event=Shutdown(reason="the demo bag could not be made"))

    return on_exit


def _rviz(share: Path, sim_time: bool) -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(share / "config" / "rviz" / "full_stack.rviz")],
        parameters=[{"use_sim_time": sim_time}],
        output="screen",
    )
