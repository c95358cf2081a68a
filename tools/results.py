"""Measure the shipped models again and write what is published: `make results`.

    python -m tools.results                       everything: data, figures, docs/results.md
    python -m tools.results --only tiny           one of the models
    python -m tools.results --dataroot D          on a root that is there already
    python -m tools.results --limit 200           options that `sparseoccvla eval all` knows are handed on
    python -m tools.results --document            docs/results.md alone, from the committed JSON

Figures lie in docs/results/MODEL/: one JSON for each kind, plots, and the command in each JSON. "untrained"
is the tiny model with random weights: what every figure looks like when nothing has been learned. "paper" is
as large and knows none of the means by which tiny learns fast.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparseoccvla.evaluation.report import markdown
from sparseoccvla.metrics.results import read_results
from sparseoccvla.runtime.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "results"
DOCUMENT = ROOT / "docs" / "results.md"
WORK = Path("out/results")  # relative, so that the commands in the JSON hold on any machine
DATAROOT = WORK / "root"
CITIES = ("rightville", "leftville")
# Scenes of each city, 20 keyframes each. Of the 1,800 to test on more than 300 need sight.
SCENES = {"train": 100, "val": 45}
EDITED = "120"  # keyframes that need sight are shown without their hazard, and as many with another look
MODELS = {
    "tiny": "tiny",
    "paper": "out/retrain_paper/model",  # as `python -m tools.retrain --paper` leaves it; not shipped
    "untrained": str(WORK / "models" / "tiny"),  # as tools/make_untrained_models.py writes it
}
UNTRAINED = ["--limit", "80", "--asked", "5", "--edited", "8"]
CONTROLS = ("pictures", "command")
KINDS = ("occupancy", "forecast", "planning", "language")
PLOTS = {
    "horizon.png": "Distance to the driven path over time.",
    "confusion.png": "Which class became which.",
    "reliability.png": "What the scores of the anchors are worth.",
    "worst.png": "The worst moments.",
}

HEAD = """\
# Results

Made by `make results` from the JSON in [docs/results](results); don't edit. Each figure names its protocol
([metrics.md](metrics.md)), the model, the data and the command. Rows without eyes stand in every table:
constant velocity, ego-only, static prior, persistence, and answers that know only the question.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--dataroot", type=Path, help="a generated root with train and val, and with edits")
    parser.add_argument("--document", action="store_true", help="only docs/results.md")
    arguments, options = parser.parse_known_args()
    if not arguments.document:
        if arguments.dataroot:
            link(arguments.dataroot)
        else:
            generate()
        for name in [arguments.only] if arguments.only else MODELS:
            if name == "paper" and not arguments.only and not (ROOT / MODELS[name]).exists():
                print(f"no {MODELS[name]}, so not measured: python -m tools.retrain --paper", file=sys.stderr)
                continue
            measure(name, options)
    DOCUMENT.write_text(document())


def link(dataroot: Path) -> None:
    """Let the name that stands in the published commands lead to a root elsewhere."""
    place = ROOT / DATAROOT
    if place.is_symlink() and dataroot.resolve() == place.resolve():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    if place.exists():
        raise SystemExit(f"{place} is a data set itself; leave --dataroot out, or move it away")
    place.symlink_to(dataroot.resolve())


def generate() -> None:
    """The data set of the published figures."""
    for split, scenes in SCENES.items():
        for city in CITIES:
            options = f"--scenes {scenes} --seed 0 --city {city} --split {split} --workers 2 --pixel-stride 4"
            run("world", "generate", "--out", DATAROOT, *options.split(), "--size", "352x128", "--no-lidar")
    run("world", "edit", "--dataroot", DATAROOT, "--limit", EDITED)


def measure(name: str, options: Sequence[str] = ()) -> None:
    """Evaluate a model and keep what is published of it."""
    if name == "untrained":
        write = ROOT / "tools" / "make_untrained_models.py"
        subprocess.run([sys.executable, write, "--models", ROOT / WORK / "models"], check=True)
        options = [*UNTRAINED, *options]
    drop_stale(ROOT / WORK / name / "predictions", read_manifest(MODELS[name]).model_id)
    controls = [word for control in CONTROLS for word in ("--shuffle", control)]
    place = ["--model", MODELS[name], "--dataroot", str(DATAROOT), "--out", str(WORK / name)]
    run("eval", "all", *place, *controls, *options)
    publish(name)


def drop_stale(predictions: Path, model_id: str) -> None:
    """Delete what another model said; what this one said already is not asked again."""
    made_by = {json.loads(file.read_bytes())["model_id"] for file in predictions.glob("*/run.json")}
    if made_by - {model_id}:
        shutil.rmtree(predictions)


def publish(name: str) -> None:
    """Copy what an evaluation made to docs/results."""
    folder = PUBLISHED / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*(f"{kind}.json" for kind in KINDS), *PLOTS):
        shutil.copyfile(ROOT / WORK / name / file, folder / file)


def run(*words: str | Path) -> None:
    command = [sys.executable, "-m", "sparseoccvla", *map(str, words)]
    print("+", " ".join(["sparseoccvla", *map(str, words)]), file=sys.stderr)
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def document() -> str:
    """What docs/results.md says."""
    return HEAD + "\n" + "\n".join(sections())


def sections() -> Iterator[str]:
    for folder in published():
        yield f"# Model {folder.name}\n"
        results = [read_results(folder / f"{kind}.json") for kind in KINDS]
        yield markdown(results)
        for name, caption in PLOTS.items():
            yield f"![{caption}](results/{folder.name}/{name})\n"


def published() -> list[Path]:
    """Folders of docs/results, one for each model."""
    return sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir())


if __name__ == "__main__":
    main()
