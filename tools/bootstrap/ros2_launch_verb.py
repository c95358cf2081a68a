"""`ros2 launch` for the pip runtime, which has launch and ros2cli but not ros2launch.

Installed only where ros2launch is absent; the commands below are a part of that program's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
from launch.utilities import perform_substitutions
from ros2cli.command import CommandExtension


class LaunchCommand(CommandExtension):
    """Run a launch file."""

    def add_arguments(self, parser: argparse.ArgumentParser, cli_name: str) -> None:
        parser.add_argument("-n", "--noninteractive", action="store_true", help="no terminal sends signals")
        parser.add_argument("-d", "--debug", action="store_true", help="show what launch does")
        parser.add_argument("-s", "--show-args", action="store_true", help="show the file's arguments")
        parser.add_argument("package_or_file", help="name of a package, or path of a launch file")
        parser.add_argument(
            "rest", nargs="*", metavar="file, name:=value", help="file of the package; arguments"
        )

    def main(self, *, parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
        rest = list(args.rest)
        if Path(args.package_or_file).is_file():
            path = Path(args.package_or_file)
        elif rest and ":=" not in rest[0]:
            path = find_launch_file(args.package_or_file, rest.pop(0))
        else:
            raise RuntimeError(f"{args.package_or_file} is no file; for a package, name its launch file too")
        wrong = [word for word in rest if ":=" not in word]
        if wrong:
            raise RuntimeError(f"'{wrong[0]}' is no launch argument, wanted name:=value")
        if args.show_args:
            print(describe_arguments(path, rest))
            return 0
        service = LaunchService(argv=rest, noninteractive=args.noninteractive, debug=args.debug)
        arguments = [tuple(word.split(":=", 1)) for word in rest]
        include = IncludeLaunchDescription(AnyLaunchDescriptionSource(str(path)), launch_arguments=arguments)
        service.include_launch_description(LaunchDescription([include]))
        return service.run()


def find_launch_file(package: str, name: str) -> Path:
    """The launch file `name` anywhere in the package's share folder."""
    try:
        share = Path(get_package_share_directory(package))
    except PackageNotFoundError as error:
        raise RuntimeError(f"Package '{package}' not found: {error}") from error
    # Folders here may be links, which rglob does not follow.
    found = [
        path for folder in (share, *(p for p in share.iterdir() if p.is_dir())) for path in folder.glob(name)
    ]
    if len(found) != 1:
        known = sorted(path.name for path in share.glob("launch/*.launch.*"))
        raise RuntimeError(
            f"'{name}' is {len(found)} times in {share}, wanted once; its launch files: {', '.join(known)}"
        )
    return found[0]


def describe_arguments(path: Path, argv: list[str]) -> str:
    context = LaunchContext(argv=argv)
    description = AnyLaunchDescriptionSource(str(path)).get_launch_description(context)
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in description.get_launch_arguments():
        default = argument.default_value
        shown = "required" if default is None else f"default: {perform_substitutions(context, default)!r}"
        lines += ["", f"    '{argument.name}' ({shown}):", f"        {argument.description}"]
    return "\n".join(lines)
