"""The networks as they are, in torch. Weights from the model folder, or seeded ones that say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseoccvla.allocator import keep_memory
from sparseoccvla.anchors import read_anchors
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import (
    NUM_ANCHORS,
    NUM_CLASSES,
    NUM_STEPS,
    Command,
    EgoState,
    EncoderInput,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
    StageInfo,
    check_array,
)
from sparseoccvla.ego_state import ego_numbers
from sparseoccvla.encoder import Encoder
from sparseoccvla.forecaster import Present
from sparseoccvla.language import load_tokenizer, shrink_weights, shrunk
from sparseoccvla.model import ModelConfig, read_config
from sparseoccvla.planner import Planner, PlannerInputs
from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.base import EncoderOutput, FeatureSet, ReasonerOutput
from sparseoccvla.runtime.cuda_graph import Replayed
from sparseoccvla.runtime.frames import decoder_frames
from sparseoccvla.runtime.manifest import Manifest, read_manifest
from sparseoccvla.runtime.proposal import build_proposal, noise_of
from sparseoccvla.voxels import VoxelRule, drop_strays
from sparseoccvla.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_encoder(source: ModelSource) -> TorchEncoder:
    """See `runtime.load.load_encoder`."""
    manifest, config = _open(source)
    net = encoder_network(source, manifest, config)
    info = _info(
        source,
        manifest,
        "encoder",
        image_size_px=config.encoder.image_size_px,
        history_frames=config.encoder.frames,
    )
    encoder = TorchEncoder(net, info, half_wanted(source))
    # The first run of a network takes several times as long as any other: not with a set waiting.
    cameras = config.encoder.cameras
    images = np.zeros((cameras, *config.encoder.image_size_px, 3), np.uint8)
    poses = np.tile(np.eye(4), (cameras, 1, 1))
    features = encoder.extract(EncoderInput(0, images, poses, np.eye(4), np.ones(cameras, bool)))
    encoder.decode([features] * config.encoder.frames)
    return encoder


def load_reasoner(source: ModelSource) -> TorchReasoner:
    """See `runtime.load.load_reasoner`."""
    manifest, config = _open(source)
    language = config.reasoner.language
    tokenizer = load_tokenizer(language, None if language.path else manifest.file("tokenizer.json"))
    net = reasoner_network(source, manifest, config)
    extras = {}
    if source.language_weights != "stored":
        changed, matrices = shrunk(net.language)
        extras["language weights"] = f"{source.language_weights} in {changed} of {matrices} matrices"
    info = _info(source, manifest, "reasoner", extras=extras)
    reasoner = TorchReasoner(net, tokenizer, info, config.encoder.voxel_rule, half_wanted(source))
    reasoner.reason(_blank_queries(config))  # see load_encoder
    return reasoner


def load_planner(source: ModelSource) -> TorchPlanner:
    """See `runtime.load.load_planner`."""
    manifest, config = _open(source)
    anchors_m = read_anchors(manifest.file("anchors.json"))
    net = planner_network(source, manifest, config)
    planner = TorchPlanner(
        net, anchors_m, _info(source, manifest, "planner"), source.seed, half_wanted(source)
    )
    planner.plan(_blank_queries(config), EgoState.fake(0), Command.STRAIGHT, None, 0.0)  # see load_encoder
    return planner


class TorchEncoder:
    """Keeps stacked feature maps in the feature sets, so that history costs no backbone."""

    def __init__(self, net: Encoder, info: StageInfo, half: bool) -> None:
        self.info = info
        self._half = half
        self.voxel_rule = net.config.voxel_rule
        self._net = net
        self._extracted, self._decoded = Replayed(self._extract), Replayed(self._decode)

    @torch.inference_mode()
    def extract(self, inputs: EncoderInput) -> FeatureSet:
        config = self._net.config
        wanted = (config.cameras, *config.image_size_px, 3)
        check_array("EncoderInput.images_rgb", inputs.images_rgb, wanted, "u")
        maps = self._extracted(self._tensor(inputs.images_rgb))
        if maps[0].device.type == "cuda":
            maps = tuple(level.clone() for level in maps)  # they stay as history
        return FeatureSet(
            inputs.t0_ns, list(maps), inputs.image_from_odom, inputs.odom_from_base, inputs.valid
        )

    @torch.inference_mode()
    def decode(self, frames: Sequence[FeatureSet | None]) -> EncoderOutput:
        config = self._net.config
        read = decoder_frames(frames, config.frames, config.repeat_history)
        assert frames[0] is not None
        features, points_m, scores = (
            _array(tensor)
            for tensor in self._decoded(
                *zip(*read.maps, strict=True),
                self._tensor(read.image_from_base)[None],
                self._tensor(read.base_from_image)[None],
                self._tensor(read.valid)[None],
            )
        )
        return EncoderOutput(
            OccupancyQueries.of(frames[0].t0_ns, features, points_m, scores),
            drop_strays(points_m, scores, self.voxel_rule.max_spread_m),
        )

    def _extract(self, images_rgb: Tensor) -> tuple[Tensor, ...]:
        with _arithmetic(images_rgb.device, self._half):
            return tuple(self._net.extract(images_rgb.permute(0, 3, 1, 2).float()[None]))

    def _decode(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *levels, image_from_base, base_from_image, valid = tensors
        with _arithmetic(valid.device, self._half):
            decoded = self._net.decode(levels, image_from_base, base_from_image, valid)
            scores = self._net.scores(decoded.logits[-1])
        return decoded.features[0], decoded.points_m[-1][0], scores[0]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._net.initial_points.device)


class TorchReasoner:
    """One prefill for token and forecast; answers decoded on their own cache."""

    def __init__(
        self,
        net: Reasoner,
        tokenizer: PreTrainedTokenizerBase,
        info: StageInfo,
        voxel_rule: VoxelRule,
        half: bool,
    ) -> None:
        self.info = info
        self._half = half
        self.voxel_rule = voxel_rule
        self._net = net
        self._tokenizer = tokenizer
        self._prompt = prompt(net.config.prompt_style, [Turn(PLANNING_QUESTION)])
        self._prompt_ids = self._ids(self._prompt)
        self._reasoned = Replayed(self._reason)

    @torch.inference_mode()
    def reason(self, queries: OccupancyQueries) -> ReasonerOutput:
        features, points_m = self._tensors(queries)
        labels, scores = (
            torch.from_numpy(array)[None].to(features.device)
            for array in (queries.point_labels.astype(np.int32), queries.point_scores)
        )
        said = self._reasoned(features, points_m, labels, scores.float())
        reasoning, *forecast = (_array(tensor[0]) for tensor in said)
        most_m = self.voxel_rule.max_spread_m
        return ReasonerOutput(
            Reasoning(queries.t0_ns, reasoning),
            tuple(drop_strays(*step, most_m) for step in zip(forecast[::2], forecast[1::2], strict=True)),
            self._prompt,
        )

    def _reason(
        self, features: Tensor, points_m: Tensor, labels: Tensor, scores: Tensor
    ) -> tuple[Tensor, ...]:
        """T_r, then points and class scores of each horizon."""
        free = self._net.config.forecast_free_class
        with _arithmetic(features.device, self._half):
            prefill = self._net.prefill(features, points_m, self._prompt_ids)
            steps = self._net.forecast(features, Present(points_m, labels, scores), prefill.occupancy)
        said, logits = [prefill.reasoning], None
        for step in steps:
            if step.logits is not logits:  # of a forecast from the present they are the same at all times
                logits = step.logits
                sure = logits.softmax(dim=-1)[..., :NUM_CLASSES] if free else logits.sigmoid()
            said += [step.points_m, sure]
        return tuple(said)

    def answer(self, queries: OccupancyQueries, question: str, max_tokens: int) -> Iterator[str]:
        features, points_m = self._tensors(queries)
        asked = self._ids(prompt(self._net.config.prompt_style, [Turn(question)]))
        end = int(self._tokenizer.eos_token_id)
        ids: list[int] = []
        text = said = ""
        tokens = self._net.generate(features, points_m, asked, max_tokens, end)
        for token in iter(lambda: self._next(tokens), None):
            ids.append(token)
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            # A character of several tokens shows as the replacement mark until it is whole.
            if not text.endswith("\ufffd") and len(text) > len(said):
                yield text[len(said) :]
                said = text
        if len(text) > len(said):
            yield text[len(said) :]

    def _next(self, tokens: Iterator[int]) -> int | None:
        # Not around the loop: between two tokens whoever asked runs, in his own arithmetic.
        with _arithmetic(self._net.reasoning_token.device, self._half):
            return next(tokens, None)

    def _ids(self, text: str) -> Tensor:
        ids = self._tokenizer(text, return_tensors="pt").input_ids[0]
        return ids.to(self._net.reasoning_token.device)

    def _tensors(self, queries: OccupancyQueries) -> tuple[Tensor, Tensor]:
        return _query_tensors(queries, self._net.config.query_width, self._net.reasoning_token.device)


class TorchPlanner:
    """All 18 candidates in one batch; noise from seed and stamp."""

    def __init__(
        self, net: Planner, anchors_m: NDArray[np.float32], info: StageInfo, seed: int, half: bool
    ) -> None:
        self.info = info
        self._half = half
        self.anchors_m = anchors_m
        self._net = net
        self._seed = seed
        self._anchors = torch.from_numpy(anchors_m.reshape(NUM_ANCHORS, NUM_STEPS, 2)).to(_device(net))
        self._planned = Replayed(self._plan)

    @torch.inference_mode()
    def plan(
        self,
        queries: OccupancyQueries,
        ego: EgoState,
        command: Command,
        reasoning: Reasoning | None,
        reasoning_age_s: float,
    ) -> PlanProposal:
        config, device = self._net.config, self._anchors.device
        features, points_m = _query_tensors(queries, config.query_width, device)
        token = np.zeros(config.token_width, np.float32) if reasoning is None else reasoning.token
        check_array("Reasoning.token", token, (config.token_width,), "f")
        has = reasoning is not None
        candidates_m, scores = self._planned(
            features,
            points_m,
            torch.from_numpy(ego_numbers(ego))[None].to(device),
            torch.from_numpy(token)[None].float().to(device),
            torch.tensor([float(has)], device=device),
            torch.tensor([reasoning_age_s if has else 0.0], device=device),
            torch.from_numpy(noise_of(self._seed, queries.t0_ns))[None].to(device),
        )
        return build_proposal(queries, ego, command, reasoning, _array(candidates_m[0]), _array(scores[0]))

    def _plan(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, noise = tensors
        with _arithmetic(noise.device, self._half):
            candidates_m, scores = self._net(PlannerInputs(*inputs), self._anchors, noise)
        return candidates_m, scores


def _blank_queries(config: ModelConfig) -> OccupancyQueries:
    shape = (config.encoder.queries, config.encoder.points[-1])
    return OccupancyQueries(
        0,
        np.zeros((shape[0], config.encoder.width), np.float32),
        np.zeros((*shape, 3), np.float32),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.float32),
    )


def open_model(source: ModelSource) -> tuple[Manifest, ModelConfig]:
    """Manifest and configuration of a model.

    Raises:
        InputError: no such model, or files that its manifest was not written for.
    """
    manifest = read_manifest(source.model)
    return manifest, read_config(manifest.file("config.json"))


def encoder_network(source: ModelSource, manifest: Manifest, config: ModelConfig) -> Encoder:
    """The encoder with its weights, or with those of the seed where the manifest names none."""
    return _network(source, manifest, "encoder", lambda: Encoder(config.encoder))


def reasoner_network(source: ModelSource, manifest: Manifest, config: ModelConfig) -> Reasoner:
    """As `encoder_network`."""
    return _network(source, manifest, "reasoner", lambda: Reasoner(config.reasoner))


def planner_network(source: ModelSource, manifest: Manifest, config: ModelConfig) -> Planner:
    """As `encoder_network`."""
    return _network(source, manifest, "planner", lambda: Planner(config.planner))


def half_wanted(source: ModelSource) -> bool:
    """Whether matrices and convolutions are computed in bf16."""
    if source.precision != "auto":
        return source.precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "amx_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else ""


def _arithmetic(device: torch.device, half: bool) -> AbstractContextManager[Any]:
    # No cache of weights: one that is recorded would be read after it was freed.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if half else nullcontext()


def _open(source: ModelSource) -> tuple[Manifest, ModelConfig]:
    # torch would take every core for each of three processes, whose threads then wait for each other.
    torch.set_num_threads(source.threads or max(1, (os.cpu_count() or 1) // 3))
    # Else convolutions round fp32 to 10 bits on a GPU.
    torch.backends.cudnn.allow_tf32 = False
    keep_memory()
    return open_model(source)


def _network[Net: nn.Module](
    source: ModelSource, manifest: Manifest, stage: str, build: Callable[[], Net]
) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        net = build()
    if manifest.stages[stage].trained:
        load_weights(net, manifest.file(manifest.stages[stage].weights))
    if half_wanted(source):
        # For good: autocast would convert them anew in every run.
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(torch.bfloat16)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(net, Reasoner) and source.language_weights != "stored":
        shrink_weights(net.language, source.language_weights, device)
    net = net.eval().requires_grad_(False).to(device)
    if source.compiled:
        compile_parts(net)
    return net


def compile_parts(net: nn.Module) -> None:
    """Have the parts of a stage compiled when they first run, in place.

    Parts, not the whole: layers that are alike are compiled once, and a compiler takes more than twice as
    long over twice as much.
    """
    parts: list[nn.Module] = []
    match net:
        case Encoder():
            found = [net.backbone, net.auxiliary, net.seeds, *net.layers]
            parts = [part for part in found if part is not None]
        case Reasoner():
            layers: Any = net.language.base_model.layers
            parts = [*layers, net.forecaster]
        case Planner():
            parts = [net.context, net.scorer, net.decoder]
    # Precompiled headers are named by a program, openssl, that does not start beside the libraries of ROS.
    options = {"cpp_cache_precompile_headers": False}
    for part in parts:
        part.compile(dynamic=False, options=options)


def _info(source: ModelSource, manifest: Manifest, stage: str, **rest: Any) -> StageInfo:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    precision = "bf16" if half_wanted(source) else "fp32"
    reason = f"asked for; torch {torch.__version__} on {device}, {precision}"
    if source.compiled:
        reason += ", compiled"
    if torch.cuda.is_available():
        reason += ", replayed"
    if not manifest.stages[stage].trained:
        reason += f"; no trained weights: random ones of seed {source.seed}"
    return manifest.info(stage, "torch", reason, **rest)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _query_tensors(queries: OccupancyQueries, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (1, Q, C) and points (1, Q, R, 3) in fp32, after a check of the width."""
    check_array("OccupancyQueries.features", queries.features, (None, width), "f")
    return (
        torch.from_numpy(queries.features)[None].float().to(device),
        torch.from_numpy(queries.points_base_m)[None].float().to(device),
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
