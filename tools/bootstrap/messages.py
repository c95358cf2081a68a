"""Build an interface package without cmake and ROS headers: the runtime's generators, gcc and one header.

A stock build makes five libraries per package and looks for them at run time. Here everything goes
into the package's one Python extension, with the introspection type support only; `rosidl_types.h`
explains what that means for the middleware.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.bootstrap.environment import ROOT, outside_environment
from tools.bootstrap.errors import SetupError
from tools.bootstrap.runtime import Runtime

HEADER = Path(__file__).with_name("rosidl_types.h")
GENERATOR = "tools.bootstrap.generate"

# Headers that generated code includes from ROS; each becomes a link to HEADER.
ROS_INCLUDE = re.compile(r'^#include "((?:rosidl_|rcutils/)[^"]+)"', re.MULTILINE)

# The table of an action. Stock builds generate it in C++ for the dispatching type support, which this
# build does not have.
ACTION_TABLE = """\
#include "{package}/action/{header}.h"
const rosidl_service_type_support_t *
ROSIDL_TYPESUPPORT_INTERFACE__SERVICE_SYMBOL_NAME(, action_msgs, srv, CancelGoal)(void);
const rosidl_message_type_support_t *
ROSIDL_TYPESUPPORT_INTERFACE__MESSAGE_SYMBOL_NAME(, action_msgs, msg, GoalStatusArray)(void);
const rosidl_action_type_support_t *
ROSIDL_TYPESUPPORT_INTERFACE__ACTION_SYMBOL_NAME(, {package}, action, {name})(void)
{{
  static rosidl_action_type_support_t table;
  table.goal_service_type_support =
    ROSIDL_GET_SRV_TYPE_SUPPORT({package}, action, {name}_SendGoal);
  table.result_service_type_support =
    ROSIDL_GET_SRV_TYPE_SUPPORT({package}, action, {name}_GetResult);
  table.cancel_service_type_support = ROSIDL_GET_SRV_TYPE_SUPPORT(action_msgs, srv, CancelGoal);
  table.feedback_message_type_support =
    ROSIDL_GET_MSG_TYPE_SUPPORT({package}, action, {name}_FeedbackMessage);
  table.status_message_type_support = ROSIDL_GET_MSG_TYPE_SUPPORT(action_msgs, msg, GoalStatusArray);
  table.get_type_hash_func = {package}__action__{name}__get_type_hash;
  table.get_type_description_func = {package}__action__{name}__get_type_description;
  table.get_type_description_sources_func = {package}__action__{name}__get_type_description_sources;
  return &table;
}}
"""


def build(package_dir: Path, runtime: Runtime, prefix: Path, work: Path) -> None:
    """Generate, compile and install an interface package into an ament prefix.

    Args:
        package_dir: holds package.xml and msg/, srv/, action/; its name is the package's.
        runtime: where the generators, and the libraries of the types it uses, are.
        prefix: gets lib/pythonX.Y/site-packages/PACKAGE and share/PACKAGE, with msg, idl and json files.
        work: empty folder for generated code.

    Raises:
        SetupError: a generator refused an interface or the compiler failed; the text has its output.
    """
    package = package_dir.name
    run_tool(
        [str(runtime.python), "-m", GENERATOR, str(package_dir), str(runtime.prefix / "share"), str(work)],
        runtime.environment,
        f"generating code for {package}",
    )
    sources = [
        *work.glob(f"c/{package}/**/*.c"),
        *work.glob(f"introspection_c/{package}/**/*.c"),
        *work.glob(f"py/{package}/**/*_s.c"),
        work / f"py/{package}/_{package}_s.ep.rosidl_typesupport_c.c",
        *(write_action_table(package, path.stem, work) for path in package_dir.glob("action/*.action")),
    ]
    extension = compile_extension(package, sources, runtime, work)
    install(package_dir, extension, prefix, work)


def write_action_table(package: str, name: str, work: Path) -> Path:
    header = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    path = work / f"{header}__action_table.c"
    path.write_text(ACTION_TABLE.format(package=package, header=header, name=name))
    return path


def compile_extension(package: str, sources: list[Path], runtime: Runtime, work: Path) -> Path:
    """One shared object from all generated sources; nested types come from the runtime's libraries."""
    forwards = work / "forwards"
    for path in work.rglob("*.[ch]"):
        for name in ROS_INCLUDE.findall(path.read_text()):
            (forwards / name).parent.mkdir(parents=True, exist_ok=True)
            (forwards / name).write_text(f'#include "{HEADER}"\n')
    numpy_include = run_tool(
        [str(runtime.python), "-c", "import numpy; print(numpy.get_include())"],
        outside_environment(),
        "looking for numpy",
    )
    include = [
        forwards,
        work / "c",
        work / "introspection_c",
        Path(sysconfig.get_paths()["include"]),
        Path(numpy_include.strip()),
    ]
    flags = ["-O2", "-fPIC", "-w", *(f"-I{folder}" for folder in include)]

    def compile_one(numbered: tuple[int, Path]) -> str:
        number, source = numbered
        target = work / f"{number}.o"
        run_tool(
            ["gcc", *flags, "-c", str(source), "-o", str(target)],
            outside_environment(),
            f"compiling {source.name}",
        )
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, enumerate(sources)))
    dependencies = {path.name for path in (work / "c").iterdir()} | {"action_msgs"}
    libraries = [
        f"-l{name}__{part}"
        for name in sorted(dependencies - {package})
        for part in ("rosidl_generator_c", "rosidl_generator_py", "rosidl_typesupport_introspection_c")
    ]
    # rclpy imports `PACKAGE_s__rosidl_typesupport_c`, the dispatching one in a stock build.
    target = work / f"{package}_s__rosidl_typesupport_c{sysconfig.get_config_var('EXT_SUFFIX')}"
    common = ["-lrosidl_typesupport_introspection_c", "-lrosidl_runtime_c", "-lrcutils"]
    run_tool(
        ["gcc", "-shared", "-o", str(target), *objects, f"-L{runtime.prefix / 'lib'}", *libraries, *common],
        # The linker follows the libraries' own dependencies through this.
        {**outside_environment(), "LD_LIBRARY_PATH": str(runtime.prefix / "lib")},
        f"linking {target.name}",
    )
    return target


def install(package_dir: Path, extension: Path, prefix: Path, work: Path) -> None:
    package = package_dir.name
    python_dir = prefix / python_folder() / package
    share = prefix / "share" / package
    shutil.copytree(
        work / "py" / package, python_dir, ignore=shutil.ignore_patterns("*.c", "tmp"), dirs_exist_ok=True
    )
    (python_dir / "__init__.py").touch()
    shutil.copy(extension, python_dir)
    share.mkdir(parents=True, exist_ok=True)
    shutil.copy(package_dir / "package.xml", share)
    described = []
    for kind in ("msg", "srv", "action"):
        files = [
            *package_dir.glob(f"{kind}/*.{kind}"),
            *work.glob(f"idl/{kind}/*.idl"),
            *work.glob(f"c/{package}/{kind}/*.json"),
        ]
        for path in files:
            (share / kind).mkdir(exist_ok=True)
            shutil.copy(path, share / kind)
        described += [f"{kind}/{path.name}" for path in files if path.suffix != ".json"]
    add_to_index(prefix, "packages", package)
    add_to_index(prefix, "rosidl_interfaces", package, "\n".join(sorted(described)))


def add_to_index(prefix: Path, resource_type: str, name: str, content: str = "") -> None:
    """Register `name` with ament_index, by which ros2cli and launch find packages."""
    folder = prefix / "share" / "ament_index" / "resource_index" / resource_type
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def python_folder() -> Path:
    """Where Python packages go inside a prefix."""
    return Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")


def run_tool(command: list[str], environment: Mapping[str, str], doing: str) -> str:
    """Standard output of a tool that must succeed."""
    try:
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SetupError(
            f"{doing} needs `{command[0]}`, which is not on PATH; on Debian and Ubuntu: "
            "sudo apt install build-essential"
        ) from None
    if done.returncode:
        raise SetupError(
            f"{doing} failed: `{' '.join(command[:6])} ...` ended with {done.returncode}\n"
            f"{(done.stdout + done.stderr)[-4000:]}"
        )
    return done.stdout
