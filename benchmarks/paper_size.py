"""One training step of every stage at the paper's size on a real keyframe: that it runs, and what it takes.

    python benchmarks/paper_size.py                               # the keyframe under $SPARSEOCCVLA_REAL_DATA
    python benchmarks/paper_size.py --dataroot D --label L        # another data set's first keyframe

ResNet-50, 8 frames, 600 queries, 6 layers, reasoner, forecaster and planner as in
`models/nuscenes_r50_vicuna7b`. The language model is as wide as Vicuna-7B, with two of its 32 layers and
random weights, written by `save_pretrained` and loaded as Vicuna would be. One keyframe is no drive: it is
repeated every half second as if all stood still, with one label for all times and counts of its boxes as
texts. So memory and seconds mean something, losses do not. There is no CLIP teacher.

Each stage runs in a process of its own, whose peak it reports. It trains where `accelerate` finds it can.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import command, machine
from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.contracts import FORECAST_HORIZONS_S, HISTORY_INTERVAL_S, NUM_STEPS
from sparseoccvla.data.occ3d import label_file
from sparseoccvla.data.tables import Tables
from sparseoccvla.encoder import Encoder
from sparseoccvla.language import END_MARK, LanguageConfig, llama_config, load_tokenizer
from sparseoccvla.model import ModelConfig, SparseOccVLA, write_config
from sparseoccvla.planner import Planner
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.training.batches import network_inputs
from sparseoccvla.training.config import DrivingTraining, PlanningTraining, ScheduleConfig, TrainingConfig
from sparseoccvla.training.driving import DrivingSampler, DrivingTruth
from sparseoccvla.training.encoder_stage import EncoderTask
from sparseoccvla.training.joint_stage import JointLoader, JointTask
from sparseoccvla.training.loop import Task, parameter_groups
from sparseoccvla.training.losses import reduce_terms
from sparseoccvla.training.packing import Texts
from sparseoccvla.training.planning_stage import PlanningTask, TokenBatch
from sparseoccvla.training.run import Run, model_config
from sparseoccvla.training.tokenizer import texts_of, train_tokenizer
from sparseoccvla.training.tokens import Queries, queries_of

GIB = 2**30
STAGES = ("encoder", "planning", "joint")
SPLIT = "train"
AFTER = max(NUM_STEPS, *(round(seconds / HISTORY_INTERVAL_S) for seconds in FORECAST_HORIZONS_S))
SAME = ("attribute", "calibrated_sensor", "category", "instance", "log", "map", "sensor", "visibility")


@dataclass(frozen=True)
class Plan:
    """What every process is told."""

    folder: Path  # of all that is made
    model: str
    batch: int
    steps: int
    threads: int
    language_layers: int
    gradient_frames: int  # of each sample, 0: all

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def stand_in(self) -> Path:
        return self.folder / "language"


def repeat_keyframe(source: Tables, label: Path, root: Path, times: int) -> None:
    """Write a data set whose only scene sees the first keyframe of `source` again and again."""
    scene = next(iter(source.rows("scene").values()))
    first = scene["first_sample_token"]
    sample = source.get("sample", first, f"scene {scene['name']}")
    pictures = [row for row in source.data_of_sample[first] if row["is_key_frame"]]
    poses = [source.get("ego_pose", row["ego_pose_token"], "sample_data") for row in pictures]
    boxes = source.boxes_of_sample[first]
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")
    }

    def token(of: str, number: int) -> str:
        return f"{of}-{number}" if 0 <= number < times else ""

    for number in range(times):
        later_us = round(1e6 * HISTORY_INTERVAL_S * number)
        here = {"sample_token": token(first, number), "prev": "", "next": ""}

        def again(row: Any, number: int = number, later_us: int = later_us, **links: str) -> dict[str, Any]:
            moved = {"timestamp": row["timestamp"] + later_us} if "timestamp" in row else {}
            return {**row, "token": token(row["token"], number), **moved, **links}

        tables["sample"].append(again(sample, prev=token(first, number - 1), next=token(first, number + 1)))
        tables["ego_pose"] += [again(pose) for pose in poses]
        tables["sample_annotation"] += [again(box, **here) for box in boxes]
        tables["sample_data"] += [
            again(row, ego_pose_token=token(row["ego_pose_token"], number), **here) for row in pictures
        ]
        file = label_file(root, scene["name"], token(first, number))
        file.parent.mkdir(parents=True)
        file.symlink_to(label.resolve())
    tables["scene"] = [
        {**scene, "first_sample_token": token(first, 0), "last_sample_token": token(first, times - 1)}
    ]
    version = root / source.version
    version.mkdir(parents=True)
    for name in SAME:
        (version / f"{name}.json").symlink_to((source.dataroot / source.version / f"{name}.json").resolve())
    for name, rows in tables.items():
        (version / f"{name}.json").write_text(json.dumps(rows))
    (version / "splits.json").write_text(json.dumps({SPLIT: [scene["name"]]}))
    (root / "samples").symlink_to((source.dataroot / "samples").resolve())
    for number in range(times):
        _say(source, boxes, root, token(first, number))


def _say(source: Tables, boxes: list[Any], root: Path, token: str) -> None:
    """Texts that are true of the keyframe: how many boxes of each category it has."""
    categories = (
        source.get("instance", box["instance_token"], "sample_annotation")["category_token"] for box in boxes
    )
    names = Counter(source.get("category", category, "instance")["name"] for category in categories)
    said = [(f"{count}", name) for name, count in names.most_common()]
    texts: dict[str, Any] = {
        "desc": {"description": "; ".join(" ".join(pair) for pair in said) or "no boxes", "action": ""},
        "vqa": [{"question": f"How many boxes of {name}?", "answer": count} for count, name in said],
    }
    for kind, content in texts.items():
        (root / kind / SPLIT).mkdir(parents=True, exist_ok=True)
        (root / kind / SPLIT / f"{token}.json").write_text(json.dumps(content))


def run_of(plan: Plan) -> Run:
    """The training code's own run: default settings, the model's sizes, a stand-in for its language model."""
    sizes = model_config(plan.model)
    language = replace(
        sizes.reasoner.language, path=str(plan.stand_in), layers=plan.language_layers, dtype="bfloat16"
    )
    write_config(
        plan.folder / "model.json", replace(sizes, reasoner=replace(sizes.reasoner, language=language))
    )
    config = TrainingConfig(
        model=str(plan.folder / "model.json"),
        threads=plan.threads,
        train_split=SPLIT,
        # Every T_r is this keyframe's own, so that it is computed and learned from.
        planning=PlanningTraining(driving=DrivingTraining(null_share=0.0, stale_share=0.0)),
    )
    return Run(config, "defaults", plan.root, None, plan.folder / "cache", plan.folder / "run")


def write_stand_in(plan: Plan) -> None:
    """Make the caches and the language model that all stages read."""
    run = run_of(plan)
    reasoner = run.sizes.reasoner
    save_stand_in(reasoner.language, texts_of(run.split(SPLIT), reasoner.prompt_style))


def save_stand_in(language: LanguageConfig, texts: Iterable[str]) -> None:
    """Save random weights of these sizes to `language.path`, with a tokenizer of the texts."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = Path(language.path)
    torch.manual_seed(0)
    dtype = getattr(torch, language.dtype)
    # Billions of random numbers: where they are made fast.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(llama_config(language), dtype=dtype)
    model.save_pretrained(folder)
    words = folder / "words.json"
    words.write_text(train_tokenizer(texts, language.vocabulary))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(words), eos_token=END_MARK, pad_token="<pad>")
    tokenizer.save_pretrained(folder)


def frugal(encoder: Encoder, gradient_frames: int) -> Encoder:
    """Let gradients reach the backbone from the newest frames of each sample only, one frame at a time."""
    extract, frames = encoder.extract, encoder.config.frames

    def some(images_rgb: Tensor) -> list[Tensor]:
        parts = []
        for number, images in enumerate(images_rgb):  # T frames of each sample one after another
            learns = torch.is_grad_enabled() and number % frames < gradient_frames
            with torch.set_grad_enabled(learns):
                parts.append(extract(images[None]))
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    if gradient_frames:
        encoder.extract = some
    return encoder


def measure(stage: str, plan: Plan) -> dict[str, Any]:
    """Parameters, peak memory and seconds of a stage."""
    run = run_of(plan)
    config, sizes, device = run.config, run.sizes, run.accelerator.device
    cache = run.split(SPLIT)
    places = [(position, sizes.encoder.frames - 1) for position in range(plan.batch)]
    anchors_m = torch.from_numpy(analytic_anchors()).view(-1, NUM_STEPS, 2)
    language = sizes.reasoner.language
    figures: dict[str, Any] = {}
    task: Task
    torch.manual_seed(0)
    if stage == "encoder":
        task = EncoderTask(frugal(Encoder(sizes.encoder), plan.gradient_frames), config.encoder, 0, None)
        batch: Any = run.scenes(cache).batch(places)
        schedule = config.encoder.schedule
    else:
        texts = Texts(load_tokenizer(language, None), sizes.reasoner.prompt_style)
        sampler = DrivingSampler(cache, texts, config.planning.driving, 0)
    if stage == "planning":
        samples, truth = sampler.draw(places)
        figures["encoder"], queries = _encoder_forward(run, samples, plan.gradient_frames)
        task = PlanningTask(
            Reasoner(sizes.reasoner),
            Planner(sizes.planner),
            config.planning.driving,
            anchors_m,
            0,
            None,
            None,
        )
        batch = TokenBatch(queries, truth)
        schedule = config.planning.schedule
        figures["tokens"] = _tokens(truth, sizes)
    if stage == "joint":
        model = SparseOccVLA(sizes)
        frugal(model.encoder, plan.gradient_frames)
        task = JointTask(model, config, anchors_m, None, None, None)
        batch = JointLoader(run.scenes(cache), sampler).batch(places)
        schedule = config.joint.schedule
        figures["tokens"] = _tokens(batch.truth, sizes)
    return figures | _steps(run, task.to(device), batch.to(device), schedule, plan.steps)


def _tokens(truth: DrivingTruth, sizes: ModelConfig) -> int:
    """The language model's tokens of a sample, its text included."""
    occupancy = sizes.reasoner.pooled_tokens or sizes.encoder.queries
    return occupancy + sizes.reasoner.global_tokens + truth.pack.ids.shape[1]


def _encoder_forward(run: Run, samples: list[int], gradient_frames: int) -> tuple[dict[str, float], Queries]:
    """What the frozen encoder takes for the queries of the samples, and these."""
    encoder = frugal(Encoder(run.sizes.encoder), gradient_frames).to(run.accelerator.device).eval()
    cache, config = run.split(SPLIT), encoder.config
    inputs = [network_inputs(cache.history(index, config.frames), config.repeat_history) for index in samples]
    watch = Watch(run.accelerator.device)
    queries = queries_of(encoder, inputs, run.precision)
    return watch.figures("forward"), queries


def _steps(run: Run, task: Task, batch: Any, schedule: ScheduleConfig, steps: int) -> dict[str, Any]:
    """The steps of `training.loop.Loop`, halted after the forward pass; figures of the last."""
    accelerator = run.accelerator
    optimizer = torch.optim.AdamW(
        parameter_groups(task, schedule), schedule.learning_rate, fused=accelerator.device.type == "cuda"
    )
    model, optimizer = accelerator.prepare(task, optimizer)
    task.train()
    trained = [p for p in task.parameters() if p.requires_grad]
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in task.parameters()),
        "trainable_parameters": sum(p.numel() for p in trained),
    }
    for step in range(steps):
        watch = Watch(accelerator.device)
        loss, _ = reduce_terms(model(batch, step), task.weights)
        figures |= {"loss": round(loss.item(), 4), **watch.figures("forward")}
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(task.parameters(), schedule.clip_norm)
        figures["gradient_norm"] = round(float(norm), 3)
        figures["parameters_with_gradient"] = sum(p.numel() for p in trained if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        figures |= watch.figures("step")
    return figures


class Watch:
    """Seconds and peak memory since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._wait()
        self._began, self._busy = time.perf_counter(), time.process_time()

    def figures(self, name: str) -> dict[str, float]:
        """By the clock and of the CPU; GiB of the process, and on a GPU of its tensors there."""
        self._wait()
        status = Path("/proc/self/status").read_text().splitlines()
        [kib] = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        figures = {
            f"{name}_s": time.perf_counter() - self._began,
            f"{name}_cpu_s": time.process_time() - self._busy,
            f"{name}_peak_process_gib": kib / 2**20,
        }
        if self._device.type == "cuda":
            figures[f"{name}_peak_gpu_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
        return {key: round(value, 2) for key, value in figures.items()}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def alone[Result](work: Callable[..., Result], *arguments: Any) -> Result:
    """Work in a new process, whose memory is all given back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def real_keyframe() -> tuple[Path | None, Path | None]:
    """Data set and label in the folder of real data, if there is one."""
    folder = Path(os.environ.get("SPARSEOCCVLA_REAL_DATA", "/nowhere"))
    labels = sorted(folder.glob("occ3d/*/labels.npz"))
    return (folder / "real_frame", labels[0]) if labels else (None, None)


def main() -> None:
    real, real_label = real_keyframe()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataroot", type=Path, default=real, help="in nuScenes format")
    parser.add_argument("--version", help="needed when the root has several")
    parser.add_argument("--label", type=Path, default=real_label, help="a labels.npz of Occ3D")
    parser.add_argument("--model", default="nuscenes_r50_vicuna7b", help="folder, name or config.json")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=1, help="the last is reported; on a GPU the first is slow"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--language-layers", type=int, default=2)
    parser.add_argument(
        "--gradient-frames",
        type=int,
        default=0,
        help="newest frames through which gradients reach the backbone, for less memory; 0: all",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.dataroot is None or args.label is None:
        print("benchmarks/paper_size.py: no real keyframe here, nothing measured", file=sys.stderr)
        return
    source = Tables(args.dataroot, args.version)
    sizes = model_config(args.model)
    language = sizes.reasoner.language
    report: dict[str, Any] = {
        "what": "one training step of each stage, bf16 autocast; the first keyframe repeated, one label",
        "command": command(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **machine(),
        "threads": args.threads,
        "batch": args.batch,
        "step_reported": args.steps,
        "frames": sizes.encoder.frames,
        "frames_with_gradient_in_the_backbone": args.gradient_frames or sizes.encoder.frames,
        "language_model": f"{args.language_layers} of {language.layers} layers, {language.width} wide, "
        f"{language.vocabulary} words, random, LoRA of rank {language.lora_rank}",
        "stages": {},
    }
    with tempfile.TemporaryDirectory(prefix="paper_size_") as folder:
        plan = Plan(
            Path(folder), args.model, args.batch, args.steps, args.threads, args.language_layers,
            args.gradient_frames,
        )  # fmt: skip
        repeat_keyframe(source, args.label, plan.root, sizes.encoder.frames + AFTER)
        if args.stages != ["encoder"]:
            alone(write_stand_in, plan)
        for stage in args.stages:
            report["stages"][stage] = alone(measure, stage, plan)
            print(stage, json.dumps(report["stages"][stage]), flush=True)
            # After every stage: the next may be too large for this machine.
            args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
