"""`sparseoccvla train`: from a command to a finished stage and a model folder.

A run is a folder:

    training.json   the settings
    checkpoints/    one file a stage; the same command goes on from it
    metrics.jsonl   losses and figures, also in tensorboard/
    tokens/         what the frozen encoder says, for stage `planning`
    teacher/        the CLIP of stage `teacher`, for the setting `encoder.teacher`
    model/          what `--model` takes, written anew after each stage
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseoccvla.anchors import kmeans_anchors, read_anchors
from sparseoccvla.contracts import NUM_ANCHORS, NUM_STEPS
from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.edits import EditedKeyframe, read_edits
from sparseoccvla.data.tables import Tables
from sparseoccvla.encoder import Encoder
from sparseoccvla.errors import InputError
from sparseoccvla.language import load_tokenizer
from sparseoccvla.model import ModelConfig, SparseOccVLA, read_config
from sparseoccvla.planner import Planner
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.manifest import Manifest, find_model, read_manifest
from sparseoccvla.training.batches import (
    SceneLoader,
    made_ahead,
    made_by_workers,
    occupancy_target,
    places_of_step,
)
from sparseoccvla.training.config import ScheduleConfig, TrainingConfig
from sparseoccvla.training.crops import CropLoader, CropSource
from sparseoccvla.training.distillation import teacher_card
from sparseoccvla.training.driving import DrivingSampler
from sparseoccvla.training.driving_check import DrivingCheck
from sparseoccvla.training.encoder_stage import EncoderTask, start_at
from sparseoccvla.training.joint_stage import JointLoader, JointTask
from sparseoccvla.training.loop import Length, Loop, Task, make_accelerator
from sparseoccvla.training.model_folder import ModelParts, card_of, check_matches, write_model
from sparseoccvla.training.occupancy_check import OccupancyCheck, spread, tuned_rule
from sparseoccvla.training.packing import Texts
from sparseoccvla.training.pixel_stage import PixelCheck, PixelTask
from sparseoccvla.training.planner_stage import (
    PlannerLoader,
    PlannerTask,
    planner_draws,
    reasoning_of,
)
from sparseoccvla.training.planning_stage import PlanningTask, TokenLoader
from sparseoccvla.training.teacher_stage import (
    CropCheck,
    TeacherTask,
    build_clip,
    caption_tokenizer,
    write_teacher,
)
from sparseoccvla.training.tokenizer import texts_of, train_tokenizer
from sparseoccvla.training.tokens import (
    QueriesOf,
    TokenCache,
    driven_views,
    edited_views,
    open_tokens,
)
from sparseoccvla.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGES = ("teacher", "encoder", "planning", "planner", "joint")
_CLUSTER_SAMPLES, _CLUSTER_VOXELS = 64, 300  # training keyframes, and voxels of each, that are clustered
_CAPTION_SAMPLES = 128  # training keyframes whose captions make the teacher's tokenizer
_RULE_SAMPLES = 32  # training keyframes that the voxel rule is tuned on


class Run:
    """What all stages of a run share.

    Args:
        config: of the run.
        config_name: what its file is called, for the model's card.
        dataroot: in nuScenes format.
        version: needed when the root has several.
        cache: folder for caches of the splits, made when there are none.
        out: folder of the run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        config_name: str,
        dataroot: Path,
        version: str | None,
        cache: Path,
        out: Path,
    ) -> None:
        self.config, self.config_name, self.dataroot, self.out = config, config_name, dataroot, out
        self.accelerator: Accelerator = make_accelerator(config)
        self.sizes = model_config(config.model)
        self._tables = Tables(dataroot, version)
        self._cache = cache
        out.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            (out / "training.json").write_text(json.dumps(asdict(config), indent=1) + "\n")

    @property
    def precision(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32

    @property
    def model_folder(self) -> Path:
        return self.out / "model"

    def split(self, name: str) -> SampleCache:
        """The samples of a split; one process makes the cache, the others wait for it."""
        height, width = self.sizes.encoder.image_size_px
        wanted = CacheConfig(height_px=height, width_px=width)
        with self.accelerator.main_process_first():
            return open_cache(self._tables, name, wanted, self._cache / name, threads=self.config.threads)

    def scenes(self, cache: SampleCache, frames: int = 0, as_driven: bool = False) -> SceneLoader:
        """The loader of camera sets for training, of the encoder's `frames` if there are none."""
        encoder = self.sizes.encoder
        return SceneLoader(
            cache,
            self.dataroot,
            frames or encoder.frames,
            encoder.backbone.strides[0],
            encoder.repeat_history,
            None if as_driven else self.config.encoder.augmentation,
            self.config.seed,
        )

    def crops(self, cache: SampleCache, augmentation: AugmentationConfig | None = None) -> CropSource:
        """The teacher's crops of a split."""
        stage = self.config.teacher
        return CropSource(cache, self._tables, stage.crop_px, stage.crops, augmentation)

    def loop(
        self,
        stage: str,
        task: Task,
        make: Callable[[list[tuple[int, int]]], Any],
        samples: int,
        schedule: ScheduleConfig,
        length: Length,
    ) -> Loop:
        """The loop of a stage whose batches `make` makes of (position, sample) pairs."""
        accelerator, seed = self.accelerator, self.config.seed

        def batch(step: int) -> Any:
            places = places_of_step(
                step, schedule.batch, samples, seed, accelerator.process_index, accelerator.num_processes
            )
            return make(places)

        def batches(first: int) -> Iterator[Any]:
            if accelerator.device.type == "cuda":
                made = made_by_workers(batch, first, self.config.threads)
                return (each.to(accelerator.device) for each in made)
            return made_ahead(lambda step: batch(step).to(accelerator.device), first, self.config.threads)

        return Loop(
            stage,
            task,
            batches,
            schedule,
            self.config,
            length if length.steps or length.minutes else Length(schedule.steps),
            self.out,
            accelerator,
        )

    def trained(self, needed: tuple[str, ...]) -> tuple[Manifest, ModelConfig]:
        """The model of the stages before.

        Raises:
            InputError: there is none, a stage it needs is not trained, or its encoder has other sizes.
        """
        if not (self.model_folder / "manifest.json").exists():
            raise InputError(
                f"{self.model_folder} is not there; train --stage encoder with the same --out first"
            )
        manifest = read_manifest(str(self.model_folder))
        for stage in needed:
            if not manifest.stages[stage].trained:
                raise InputError(
                    f"{self.model_folder} has no trained {stage}; train --stage "
                    f"{'encoder' if stage == 'encoder' else 'planning'} with the same --out first"
                )
        config = read_config(manifest.file("config.json"))
        check_matches(self.sizes, config, self.model_folder)
        return manifest, config

    def write(
        self,
        config: ModelConfig,
        nets: dict[str, nn.Module | None],
        anchors: tuple[NDArray[np.floating], str],
        tokenizer: str,
        loop: Loop,
        figures: dict[str, float],
        first: Loop | None = None,
    ) -> None:
        """Write the model folder, keeping the card's figures of earlier stages.

        `first` is the loop of the stage's first part, if it has two.
        """
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        before: dict[str, Any] = {}
        if (self.model_folder / "manifest.json").exists():
            before = json.loads((self.model_folder / "manifest.json").read_text())["card"]
        length, elapsed_s = loop.length, loop.elapsed_s
        if first is not None:
            length, elapsed_s = length + first.length, elapsed_s + first.elapsed_s
        seconds = before.get("training_seconds", {}) | {loop.stage: round(elapsed_s)}
        lengths = before.get("lengths", {}) | {loop.stage: length.option}
        said = before.get("figures", {}) | {loop.stage: rounded(figures)}
        card = card_of(self.dataroot, self.config_name, lengths, seconds, said)
        # Only the encoder's own stage distills.
        distilled = before.get("distilled_from")
        if loop.stage == "encoder":
            distilled = teacher_card(self.config.encoder.teacher) if self.config.encoder.teacher else None
        if distilled:
            card["distilled_from"] = distilled
        parts = ModelParts(
            config, *anchors, tokenizer, nets, f"{self._tables.version} {self.config.train_split}"
        )
        write_model(self.model_folder, Path(self.config.model).stem, parts, card)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """As cards have them."""
    return {name: round(value, 4) for name, value in figures.items()}


def model_config(name: str) -> ModelConfig:
    """Sizes from a JSON file, or from the config.json of a model folder or name."""
    path = Path(name)
    return read_config(path if path.suffix == ".json" else find_model(name) / "config.json")


def train(stage: str, run: Run, length: Length) -> None:
    """Train a stage.

    Raises:
        InputError: no such stage, or what it builds on is not there.
    """
    match stage:
        case "teacher":
            train_teacher(run, length)
        case "encoder":
            train_encoder(run, length)
        case "planning":
            train_planning(run, length)
        case "planner":
            train_planner(run, length)
        case "joint":
            train_joint(run, length)
        case _:
            raise InputError(f"--stage is {stage!r}, wanted one of {', '.join(STAGES)}")


def train_teacher(run: Run, length: Length) -> None:
    """Train stage `teacher`, or go on with it."""
    config, stage = run.config, run.config.teacher
    cache = run.split(config.train_split)
    crops = run.crops(cache, stage.augmentation)
    captions = [
        caption
        for index in spread(len(cache), _CAPTION_SAMPLES)
        for _, caption in crops.pairs(index, np.random.default_rng([config.seed, index, 8]))
    ]
    words = caption_tokenizer(captions, stage)
    torch.manual_seed(config.seed)
    clip = build_clip(stage, words)
    held_out = run.crops(run.split(config.validation_split))
    task = TeacherTask(clip, CropCheck(held_out, words, config.validation_samples))
    loader = CropLoader(crops, words, config.seed)
    loop = run.loop("teacher", task, loader.batch, len(cache), stage.schedule, length)
    figures = {"teacher": rounded(loop.run())}
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        lengths, seconds = {"teacher": loop.length.option}, {"teacher": round(loop.elapsed_s)}
        card = card_of(run.dataroot, run.config_name, lengths, seconds, figures)
        write_teacher(run.out / "teacher", clip, words, stage, card)


def train_encoder(run: Run, length: Length) -> None:
    """Train stage `encoder`, or go on with it; then tune the voxel rule on training scenes.

    A share of it, if the settings have one, goes to the backbone and the 2-D head alone.
    """
    config, stage = run.config, run.config.encoder
    torch.manual_seed(config.seed)
    encoder = Encoder(run.sizes.encoder)
    cache = run.split(config.train_split)
    if stage.clustered_points:
        start_at(encoder, _visible_voxels(cache, config.seed), stage.start_spread_m, config.seed)
    validation = run.split(config.validation_split)
    first, pixel_length = None, Length()
    if stage.pixels.share:
        if length.steps or length.minutes:
            pixel_length, length = length.split(stage.pixels.share)
        first = _pixel_loop(run, encoder, cache, validation, pixel_length)
        first.run()
    check = OccupancyCheck(validation, config.validation_samples, encoder, run.precision)
    task = EncoderTask(encoder, stage, config.seed, check)
    loop = run.loop("encoder", task, run.scenes(cache).batch, len(cache), stage.schedule, length)
    figures = loop.run()
    sizes = tuned_sizes(run, encoder, cache)
    anchors = _model_anchors(run)
    nets: dict[str, nn.Module | None] = {"encoder": encoder, "reasoner": None, "planner": None}
    run.write(sizes, nets, anchors, _model_tokenizer(run), loop, figures, first)


def _pixel_loop(
    run: Run, encoder: Encoder, cache: SampleCache, validation: SampleCache, length: Length
) -> Loop:
    """The loop of the first part of stage `encoder`."""
    stage = run.config.encoder
    held_out = run.scenes(validation, frames=1, as_driven=True)
    check = PixelCheck(held_out, len(validation), run.config.validation_samples, run.precision)
    batch = run.scenes(cache, frames=1).batch
    return run.loop(
        "pixels", PixelTask(encoder, stage, check), batch, len(cache), stage.pixels.schedule, length
    )


def _visible_voxels(cache: SampleCache, seed: int) -> Tensor:
    """(n, 3) centers of some visible voxels of some keyframes, in base_link at their label's time."""
    rng = np.random.default_rng([seed, 6])
    parts = []
    for index in spread(len(cache), _CLUSTER_SAMPLES):
        label = cache.occupancy(index)
        if label is not None:
            target = occupancy_target(label, np.eye(4))
            seen = target.points_m[target.visible]
            parts.append(seen[torch.from_numpy(rng.integers(len(seen), size=_CLUSTER_VOXELS))])
    return torch.cat(parts)


def tuned_sizes(run: Run, encoder: Encoder, cache: SampleCache) -> ModelConfig:
    """The sizes with the voxel rule that serves training scenes best."""
    encoder.eval()
    scored = OccupancyCheck(cache, _RULE_SAMPLES, encoder, run.precision).scored(encoder)
    rule, _ = tuned_rule(scored, run.sizes.encoder.voxel_rule)
    return replace(run.sizes, encoder=replace(run.sizes.encoder, voxel_rule=rule))


def train_planning(run: Run, length: Length) -> None:
    """Train stage `planning`, or go on with it."""
    config, stage = run.config, run.config.planning
    manifest, sizes = run.trained(("encoder",))
    # The rest starts anew, so its sizes are those of the settings, whatever the folder says.
    sizes = replace(sizes, reasoner=run.sizes.reasoner, planner=run.sizes.planner)
    train, validation = run.split(config.train_split), run.split(config.validation_split)
    encoder = _loaded(Encoder(sizes.encoder), manifest, "encoder").to(run.accelerator.device).eval()
    edits = _edits(run, train)
    caches = _token_caches(run, encoder, train, edits)
    sizes, tokenizer, words = _language(run, sizes, train)
    anchors = _anchors(run, train)
    texts = Texts(words, sizes.reasoner.prompt_style)
    torch.manual_seed(config.seed)
    reasoner, planner = Reasoner(sizes.reasoner), Planner(sizes.planner)
    task = PlanningTask(
        reasoner,
        planner,
        stage.driving,
        _anchor_tensor(anchors[0]),
        config.seed,
        _driving_check(run, validation, texts, anchors[0], sizes),
        lru_cache(maxsize=None)(QueriesOf(validation, encoder, run.precision)),
    )
    sampler = DrivingSampler(train, texts, stage.driving, config.seed, edits)
    loader = TokenLoader(caches, sampler, config.seed)
    loop = run.loop("planning", task, loader.batch, len(train), stage.schedule, length)
    figures = loop.run()
    nets: dict[str, nn.Module | None] = {"encoder": encoder, "reasoner": reasoner, "planner": planner}
    run.write(sizes, nets, anchors, tokenizer, loop, figures)


def train_planner(run: Run, length: Length) -> None:
    """Train stage `planner`, or go on with it."""
    config, driving = run.config, planner_draws(run.config.planning.driving)
    manifest, sizes = run.trained(("encoder", "reasoner", "planner"))
    train, validation = run.split(config.train_split), run.split(config.validation_split)
    device = run.accelerator.device
    encoder = _loaded(Encoder(sizes.encoder), manifest, "encoder").to(device).eval()
    reasoner = _loaded(Reasoner(sizes.reasoner), manifest, "reasoner").to(device).eval()
    planner = _loaded(Planner(sizes.planner), manifest, "planner")
    tokenizer, texts, anchors = _made_before(manifest, sizes)
    edits = _edits(run, train)
    caches = _token_caches(run, encoder, train, edits)
    reasoning = reasoning_of(reasoner, caches, torch.tensor(texts.planning), run.precision)
    task = PlannerTask(
        reasoner,
        planner,
        driving,
        _anchor_tensor(anchors[0]),
        _driving_check(run, validation, texts, anchors[0], sizes),
        lru_cache(maxsize=None)(QueriesOf(validation, encoder, run.precision)),
    )
    loader = PlannerLoader(caches, reasoning, DrivingSampler(train, texts, driving, config.seed, edits))
    loop = run.loop("planner", task, loader.batch, len(train), config.planner.schedule, length)
    figures = loop.run()
    nets: dict[str, nn.Module | None] = {"encoder": encoder, "reasoner": reasoner, "planner": planner}
    run.write(sizes, nets, anchors, tokenizer, loop, figures)


def train_joint(run: Run, length: Length) -> None:
    """Train stage `joint`, or go on with it; then tune the voxel rule again."""
    config, stage = run.config, run.config.joint
    manifest, sizes = run.trained(("encoder", "reasoner", "planner"))
    train, validation = run.split(config.train_split), run.split(config.validation_split)
    tokenizer, texts, anchors = _made_before(manifest, sizes)
    model = SparseOccVLA(sizes)
    for name in ("encoder", "reasoner", "planner"):
        _loaded(getattr(model, name), manifest, name)
    occupancy = OccupancyCheck(validation, config.validation_samples, model.encoder, run.precision)
    task = JointTask(
        model,
        config,
        _anchor_tensor(anchors[0]),
        occupancy,
        _driving_check(run, validation, texts, anchors[0], sizes),
        QueriesOf(validation, model.encoder, run.precision),
    )
    # Pictures cost more here than words: the language model sees every keyframe. Edited ones have no labels.
    driving = replace(config.planning.driving, spoken_share=1.0, edited_share=0.0)
    sampler = DrivingSampler(train, texts, driving, config.seed)
    loader = JointLoader(run.scenes(train), sampler)
    loop = run.loop("joint", task, loader.batch, len(train), stage.schedule, length)
    figures = loop.run()
    rule = tuned_sizes(run, model.encoder, train).encoder.voxel_rule
    sizes = replace(sizes, encoder=replace(sizes.encoder, voxel_rule=rule))
    nets: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "reasoner": model.reasoner,
        "planner": model.planner,
    }
    run.write(sizes, nets, anchors, tokenizer, loop, figures)


def _loaded[Net: nn.Module](net: Net, manifest: Manifest, stage: str) -> Net:
    load_weights(net, manifest.file(manifest.stages[stage].weights))
    return net


def _made_before(
    manifest: Manifest, sizes: ModelConfig
) -> tuple[str, Texts, tuple[NDArray[np.floating], str]]:
    """Of the stages before: tokenizer.json ("" where the model brings its own), texts, and anchors."""
    language, file = sizes.reasoner.language, None
    if not language.path:
        file = manifest.file("tokenizer.json")
    texts = Texts(load_tokenizer(language, file), sizes.reasoner.prompt_style)
    anchors = manifest.file("anchors.json")
    how = str(json.loads(anchors.read_text())["how"])
    return file.read_text() if file else "", texts, (read_anchors(anchors), how)


def _token_caches(
    run: Run, encoder: Encoder, train: SampleCache, edits: Sequence[EditedKeyframe]
) -> list[TokenCache]:
    """What the encoder says of the training split and, if there are any, of its edited keyframes."""
    config, stage = run.config, run.config.planning
    views = {
        config.train_split: driven_views(
            train, encoder.config, stage.variants, stage.augmentation, config.seed
        )
    }
    if edits:
        edited = edited_views(train, run.dataroot, edits, encoder.config)
        views[f"{config.train_split}-edited"] = edited
    with run.accelerator.main_process_first():
        return [
            open_tokens(run.out / "tokens" / name, view, encoder, run.precision)
            for name, view in views.items()
        ]


def _edits(run: Run, cache: SampleCache) -> list[EditedKeyframe]:
    """The split's edited keyframes, if any are asked for.

    A hazard that no picture shows is left out: nothing there tells that it is gone.
    """
    share, split = run.config.planning.driving.edited_share, run.config.train_split
    if not share:
        return []
    known = set(cache.tokens)
    edits = [edit for edit in read_edits(run.dataroot) if edit.sample_token in known]
    edits = [edit for edit in edits if edit.seen or not edit.hazard]
    if not edits:
        raise InputError(
            f"planning.driving.edited_share is {share:g}, but {run.dataroot} has no edited keyframes of "
            f"split {split}; make them with `sparseoccvla world edit --dataroot {run.dataroot} "
            f"--split {split}`, or set it to 0"
        )
    return edits


def _language(
    run: Run, sizes: ModelConfig, train: SampleCache
) -> tuple[ModelConfig, str, PreTrainedTokenizerBase]:
    """Sizes with the vocabulary, tokenizer.json ("" where the model brings its own), and the tokenizer."""
    language = sizes.reasoner.language
    if language.path:
        return sizes, "", load_tokenizer(language, None)
    file = run.out / "tokenizer.json"
    with run.accelerator.main_process_first():
        if not file.exists():
            texts = texts_of(train, sizes.reasoner.prompt_style)
            file.write_text(train_tokenizer(texts, run.config.planning.driving.vocabulary))
    words = load_tokenizer(language, file)
    language = replace(language, vocabulary=-8 * (-len(words) // 8))
    sizes = replace(sizes, reasoner=replace(sizes.reasoner, language=language))
    return sizes, file.read_text(), words


def _anchors(run: Run, train: SampleCache) -> tuple[NDArray[np.floating], str]:
    """Anchors of the training paths, or the model's."""
    if run.config.planning.driving.anchors == "model":
        return _model_anchors(run)
    truths = [train.truth(index) for index in range(len(train))]
    truths = [truth for truth in truths if truth.future_valid.all()]
    paths_m = np.stack([truth.future[:, :2] for truth in truths]) if truths else np.zeros((0, NUM_STEPS, 2))
    rows = np.array([truth.command.anchor_row for truth in truths], int)
    how = f"k-means of {len(paths_m)} paths of split {run.config.train_split}, seed {run.config.seed}"
    return kmeans_anchors(paths_m, rows, run.config.seed), how


def _model_anchors(run: Run) -> tuple[NDArray[np.floating], str]:
    folder = _model_place(run)
    file = folder / "anchors.json"
    return read_anchors(file), str(json.loads(file.read_text())["how"])


def _model_tokenizer(run: Run) -> str:
    file = _model_place(run) / "tokenizer.json"
    return file.read_text() if file.exists() and not run.sizes.reasoner.language.path else ""


def _model_place(run: Run) -> Path:
    """The folder whose anchors and tokenizer stand in until this run has its own."""
    path = Path(run.config.model)
    return find_model("tiny") if path.suffix == ".json" else find_model(run.config.model)


def _anchor_tensor(anchors_m: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.asarray(anchors_m, np.float32).reshape(NUM_ANCHORS, NUM_STEPS, 2))


def _driving_check(
    run: Run, cache: SampleCache, texts: Texts, anchors_m: NDArray[np.floating], sizes: ModelConfig
) -> DrivingCheck:
    config = run.config
    return DrivingCheck(
        cache,
        config.validation_samples,
        config.validation_texts,
        texts,
        DrivingSampler(cache, texts, config.planning.driving, config.seed),
        _anchor_tensor(anchors_m),
        sizes.encoder.voxel_rule,
        sizes.reasoner.prompt_style,
    )
