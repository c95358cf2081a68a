"""Run rosidl's own generators on our interfaces. Runs inside the ROS environment; messages.py starts it.

    python -m tools.bootstrap.generate PACKAGE_DIR ROS_SHARE OUT

writes, with the package's name P:

    OUT/idl/{msg,srv,action}/*.idl             what the generators read
    OUT/c/P, OUT/introspection_c/P             C code, and the json of each type with its RIHS01 hash
    OUT/py/P                                   Python classes and their C conversions
    OUT/c/D, OUT/introspection_c/D             headers of every package D that our types use
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rosidl_cli.command.generate.api import generate
from rosidl_cli.command.translate.api import translate

INTERFACE_KINDS = ("msg", "srv", "action")


def interface_dependencies(package_xml: Path, share: Path) -> dict[str, Path]:
    """Share folders of every interface package that `package_xml` needs, directly or not."""
    found: dict[str, Path] = {}
    waiting = [package_xml]
    while waiting:
        for tag in ElementTree.parse(waiting.pop()).getroot().iter("depend"):
            folder = share / str(tag.text)
            if tag.text and tag.text not in found and (folder / "msg").is_dir():
                found[tag.text] = folder
                waiting.append(folder / "package.xml")
    return found


def referenced_types(generated: Path) -> Iterator[tuple[str, str, str]]:
    """(package, kind, name) of every type that the generated type descriptions refer to."""
    for path in generated.rglob("*.json"):
        message = json.loads(path.read_text())["type_description_msg"]
        for description in message["referenced_type_descriptions"]:
            package, kind, name = description["type_name"].split("/")
            yield package, kind, name


def run(arguments: dict[str, Any]) -> None:
    generate(**arguments)


def main(package_dir: Path, share: Path, out: Path) -> None:
    package = package_dir.name
    interfaces = sorted(path for kind in INTERFACE_KINDS for path in package_dir.glob(f"{kind}/*.{kind}"))
    include = [str(folder) for folder in interface_dependencies(package_dir / "package.xml", share).values()]
    idl = translate(
        package_name=package,
        interface_files=[f"{package_dir}:{path.relative_to(package_dir)}" for path in interfaces],
        output_format="idl",
        output_path=out / "idl",
    )

    def job(name: str, files: list[str], of: str = package, **more: Any) -> dict[str, Any]:
        kind = "typesupports" if name == "introspection_c" else "types"
        output = out / name / of
        return {
            "package_name": of,
            "interface_files": files,
            "include_paths": include,
            "output_path": output,
            kind: [name],
            **more,
        }

    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        others = [pool.submit(run, job(name, idl)) for name in ("py", "introspection_c")]
        pool.submit(run, job("c", idl)).result()
        used: dict[str, set[str]] = defaultdict(set)
        for dependency, kind, name in referenced_types(out / "c" / package):
            if dependency != package:
                used[dependency].add(f"{kind}/{name}")
        for dependency, names in used.items():
            files = [f"{share / dependency}:{name}.idl" for name in sorted(names)]
            described = [f"{share / dependency / name}.json" for name in sorted(names)]
            others.append(pool.submit(run, job("c", files, dependency, type_description_files=described)))
            others.append(pool.submit(run, job("introspection_c", files, dependency)))
        for other in others:
            other.result()


if __name__ == "__main__":
    main(*(Path(argument).absolute() for argument in sys.argv[1:]))
