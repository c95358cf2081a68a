"""Queries, ego state and reasoning to 18 scored trajectories: anchor scorer and diffusion decoder.

The scorer gives each anchor a score from T_r. The decoder starts from anchors with a little noise and
predicts clean trajectories in two DDIM steps; all 18 are refined in one batch. It works on per-step
offsets, so that the end of a path is not a hundred times its beginning.

Sources: DiffusionDrive (Liao et al., CVPR 2025) for truncated diffusion, DDIM (Song et al., 2021);
layer order scene, ego, instruction, feed-forward, timestep modulation from SparseOccVLA, figure 3.

Dimension legend:
    B batch    A candidates, 18 at inference    S steps = 6    Q queries    R points per query
    C query width    D token width    W planner width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseoccvla.connector import PointEncoding
from sparseoccvla.contracts import NUM_STEPS, PAST_POSE_TIMES_S, STEP_S
from sparseoccvla.ego_state import (
    ACCELERATION_UNIT_MPS2,
    EGO_NUMBERS,
    MOTION_NUMBERS,
    POSE_NUMBERS,
    SPEED_UNIT_MPS,
    YAW_RATE_UNIT_RADPS,
)


@dataclass(frozen=True)
class PlannerConfig:
    """Sizes of the planner and constants of its diffusion."""

    query_width: int = 256
    token_width: int = 4096
    width: int = 256
    layers: int = 2
    heads: int = 8
    ffn_width: int = 512
    instruction_tokens: int = 4  # T_r is cut into so many for the decoder to choose from
    score_with_ego: bool = False  # the paper's scorer knows T_r and the anchors only
    score_along_path: bool = False  # and each anchor looks at the queries along it
    look_along_path: bool = False  # attention to a query falls with its distance from the path
    keep_on_cue: bool = False  # scorer and decoder know how far each anchor is from keeping on
    diffusion_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_timesteps: int = 40  # training draws t from 0 to one less
    timesteps: tuple[int, ...] = (20, 0)  # of inference; the noise added is that of the first
    # In one step of 0.5 s, -1 to 22.5 m forward (45 m/s) and 6 m to each side are -1 to 1. Nothing
    # is clamped: a faster vehicle leaves [-1, 1] and stays a number.
    forward_m: tuple[float, float] = (-1.0, 22.5)
    sideways_m: tuple[float, float] = (-6.0, 6.0)


_KEPT_ON_NUMBERS = 2 * NUM_STEPS * 2  # of `keep_on`


class PlannerInputs(NamedTuple):
    """What a plan depends on."""

    features: Tensor  # (B, Q, C) Q_L
    points_m: Tensor  # (B, Q, R, 3) P_L
    ego: Tensor  # (B, EGO_NUMBERS), see `ego_numbers`
    reasoning: Tensor  # (B, D) T_r; anything finite where there is none
    has_reasoning: Tensor  # (B,) 1, or 0 for the learned null token
    reasoning_age_s: Tensor  # (B,) t0 of the queries minus t0 of T_r; 0 where there is none


class Context(NamedTuple):
    """`PlannerInputs` as tokens."""

    scene: Tensor  # (B, Q, W)
    center_m: Tensor  # (B, Q, 2)
    ego: Tensor  # (B, 1 + past poses, W)
    instruction: Tensor  # (B, instruction tokens, W)
    kept_on_m: Tensor  # (B, 2, S, 2) see `keep_on`


class Planner(nn.Module):
    """Scores and refined trajectories of all anchors."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.config = config
        self.diffusion = Diffusion(config)
        self.context = ContextEncoder(config)
        self.scorer = Scorer(config)
        self.decoder = DiffusionDecoder(config)

    def forward(self, inputs: PlannerInputs, anchors_m: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (B, A, S, 2) in cumulative meters and their scores (B, A) in [0, 1].

        Args:
            inputs: of the plan.
            anchors_m: (A, S, 2) cumulative.
            noise: (B, A, S, 2) standard normal; equal noise gives equal plans.
        """
        config, diffusion = self.config, self.diffusion
        context = self.context(inputs)
        scores = self.scorer(context, anchors_m).sigmoid()
        start = diffusion.normalized_offsets(anchors_m).expand_as(noise)
        noisy = diffusion.add_noise(start, noise, config.timesteps[0])
        clean = start
        for now, following in zip(config.timesteps, (*config.timesteps[1:], None), strict=True):
            t = torch.full((len(noisy),), float(now), device=noisy.device)
            clean = self.decoder(noisy, start, t, context, diffusion)
            if following is not None:
                noisy = diffusion.ddim_step(noisy, clean, now, following)
        return diffusion.paths_m(clean), scores

    def denoise(self, inputs: PlannerInputs, paths_m: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Clean normalized offsets (B, A, S, 2) of noised `paths_m`, as training wants them.

        `paths_m` (B, A, S, 2) are anchors, A may be 1; `noise` has their shape; `t` (B,) whole.
        """
        return self.denoise_in(self.context(inputs), paths_m, noise, t)

    def denoise_in(self, context: Context, paths_m: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`denoise` where the inputs are tokens already."""
        start = self.diffusion.normalized_offsets(paths_m)
        noisy = self.diffusion.add_noise(start, noise, t)
        clean: Tensor = self.decoder(noisy, start, t.float(), context, self.diffusion)
        return clean

    def score_logits(self, inputs: PlannerInputs, anchors_m: Tensor) -> Tensor:
        """Logits (B, A) of anchors (A, S, 2)."""
        logits: Tensor = self.scorer(self.context(inputs), anchors_m)
        return logits


class Diffusion(nn.Module):
    """Noise schedule and units; nothing here is learned."""

    signal: Tensor  # (steps,) sqrt of the cumulative product of 1 - beta
    noise: Tensor  # (steps,) standard deviation of the noise
    middle_m: Tensor
    half_m: Tensor

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        roots = torch.linspace(
            math.sqrt(config.beta_start),
            math.sqrt(config.beta_end),
            config.diffusion_steps,
            dtype=torch.float64,
        )
        kept = torch.cumprod(1 - roots**2, dim=0)
        self.register_buffer("signal", kept.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)
        low, high = torch.tensor([config.forward_m, config.sideways_m]).unbind(dim=1)
        self.register_buffer("middle_m", (low + high) / 2, persistent=False)
        self.register_buffer("half_m", (high - low) / 2, persistent=False)

    def normalized_offsets(self, paths_m: Tensor) -> Tensor:
        """Steps (..., S, 2) of cumulative paths (..., S, 2), normalized."""
        steps = torch.cat([paths_m[..., :1, :], paths_m[..., 1:, :] - paths_m[..., :-1, :]], dim=-2)
        return (steps - self.middle_m) / self.half_m

    def paths_m(self, offsets: Tensor) -> Tensor:
        """Cumulative paths (..., S, 2) in meters of normalized steps (..., S, 2)."""
        return (offsets * self.half_m + self.middle_m).cumsum(dim=-2)

    def add_noise(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """`clean` (B, A, S, 2) noised as at time `t`, one for all or (B,)."""
        signal, share = self.signal[t], self.noise[t]
        if isinstance(t, Tensor):
            signal, share = signal.view(-1, 1, 1, 1), share.view(-1, 1, 1, 1)
        return signal * clean + share * noise

    def ddim_step(self, noisy: Tensor, clean: Tensor, now: int, following: int) -> Tensor:
        """From time `now` to the earlier `following`, deterministically (eta 0)."""
        noise = (noisy - self.signal[now] * clean) / self.noise[now]
        return self.signal[following] * clean + self.noise[following] * noise


class ContextEncoder(nn.Module):
    """Tokens that scorer and decoder look at."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        self.shape = (config.instruction_tokens, width)
        self.position = PointEncoding(width)
        self.scene = nn.Linear(config.query_width, width)
        self.scene_norm = nn.LayerNorm(width)
        self.motion = nn.Sequential(nn.Linear(MOTION_NUMBERS, width), nn.ReLU(), nn.Linear(width, width))
        self.pose = nn.Sequential(nn.Linear(POSE_NUMBERS, width), nn.ReLU(), nn.Linear(width, width))
        self.pose_time = nn.Parameter(0.02 * torch.randn(len(PAST_POSE_TIMES_S), width))
        self.instruction = nn.Sequential(
            nn.LayerNorm(config.token_width), nn.Linear(config.token_width, config.instruction_tokens * width)
        )
        self.age = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width))
        self.null = nn.Parameter(0.02 * torch.randn(config.instruction_tokens, width))

    def forward(self, inputs: PlannerInputs) -> Context:
        scene = self.scene_norm(self.scene(inputs.features) + self.position(inputs.points_m))
        motion, past = inputs.ego.split([MOTION_NUMBERS, EGO_NUMBERS - MOTION_NUMBERS], dim=-1)
        poses = self.pose(past.unflatten(-1, (-1, POSE_NUMBERS))) + self.pose_time  # (B, past poses, W)
        ego = torch.cat([self.motion(motion)[:, None], poses], dim=1)
        told = self.instruction(inputs.reasoning).unflatten(-1, self.shape)
        told = told + self.age(inputs.reasoning_age_s[:, None])[:, None]
        has = inputs.has_reasoning[:, None, None]
        instruction = has * told + (1 - has) * self.null  # (B, instruction tokens, W)
        return Context(scene, inputs.points_m.mean(dim=2)[..., :2], ego, instruction, keep_on(motion))


class Scorer(nn.Module):
    """How well each anchor fits what T_r says."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        self.with_ego = config.score_with_ego
        self.anchor = nn.Sequential(nn.Linear(2 * NUM_STEPS, width), nn.ReLU(), nn.Linear(width, width))
        self.gap = nn.Linear(_KEPT_ON_NUMBERS, width, bias=False) if config.keep_on_cue else None
        self.scene = CrossAttention(width, config.heads, True) if config.score_along_path else None
        self.norm = nn.LayerNorm(width) if config.score_along_path else None
        parts = config.instruction_tokens + 1 + self.with_ego * (1 + len(PAST_POSE_TIMES_S))
        self.net = nn.Sequential(
            nn.Linear(parts * width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, context: Context, anchors_m: Tensor) -> Tensor:
        """Logits (B, A) of anchors (A, S, 2)."""
        anchor = self.anchor(anchors_m.flatten(1) / 20.0)  # (A, W)
        told = context.instruction.flatten(1)
        if self.with_ego:
            told = torch.cat([told, context.ego.flatten(1)], dim=1)
        batch, anchors = len(told), len(anchor)
        candidate = anchor.expand(batch, -1, -1)
        if self.gap is not None:
            gap_m = anchors_m[None, :, None] - context.kept_on_m[:, None]  # (B, A, 2, S, 2)
            candidate = candidate + self.gap(gap_m.flatten(2) / 5.0)
        if self.scene is not None and self.norm is not None:
            paths_m = anchors_m.expand(batch, -1, -1, -1)
            seen = self.scene(candidate, context.scene, nearest_m(paths_m, context.center_m))
            candidate = self.norm(candidate + seen)
        pairs = torch.cat([told[:, None].expand(-1, anchors, -1), candidate], dim=-1)  # (B, A, parts * W)
        logits: Tensor = self.net(pairs).squeeze(-1)
        return logits.float()


class DiffusionDecoder(nn.Module):
    """Noisy offsets to clean ones, said as a change of the anchor.

    The anchor under the noise is known, so the noise need not be subtracted again: a small network
    would leave a part of it, and noise of 5 % is 0.6 m a step at motorway scale.
    """

    _FREQUENCIES = 16

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        inputs = NUM_STEPS * 2 * (1 + 2 * self._FREQUENCIES)
        self.keep_on_cue = config.keep_on_cue
        if config.keep_on_cue:
            inputs += _KEPT_ON_NUMBERS
        self.width = width
        self.query = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.Mish(), nn.Linear(width, width), nn.Mish())
        self.layers = nn.ModuleList(DiffusionLayer(config) for _ in range(config.layers))
        last = nn.Linear(width, 2 * NUM_STEPS)
        # Start as "the anchor is right": an untrained planner drives its anchors.
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)

    def forward(
        self, noisy: Tensor, start: Tensor, t: Tensor, context: Context, diffusion: Diffusion
    ) -> Tensor:
        """Clean normalized offsets (B, A, S, 2).

        Args:
            noisy: (B, A, S, 2) at time `t`.
            start: (B, A, S, 2) anchors that the noise was added to.
            t: (B,) time.
            context: what to look at.
            diffusion: units.
        """
        paths_m = diffusion.paths_m(noisy)
        places = sinusoids(paths_m / 10.0, self._FREQUENCIES).flatten(2)  # (B, A, S * 2 * 2F)
        parts = [noisy.flatten(2), places]
        if self.keep_on_cue:
            # Of the anchor, not of what is noisy: the change that is wanted is one of the anchor, which the
            # noise of a second step, already near the answer, does not tell.
            gap = start[:, :, None] - diffusion.normalized_offsets(context.kept_on_m)[:, None]
            parts.append(4.0 * gap.flatten(2))
        query = self.query(torch.cat(parts, dim=-1))  # (B, A, W)
        time = self.time(sinusoids(t[:, None] / 10.0, self.width // 2))  # (B, W)
        gap_m = nearest_m(paths_m, context.center_m)
        for layer in self.layers:
            query = layer(query, time, gap_m, context)
        change = self.out(query).unflatten(-1, (NUM_STEPS, 2))
        return start + change.float()


class DiffusionLayer(nn.Module):
    """Scene, ego, instruction, feed-forward, timestep modulation."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        width = config.width
        self.scene = CrossAttention(width, config.heads, config.look_along_path)
        self.ego = CrossAttention(width, config.heads, False)
        self.instruction = CrossAttention(width, config.heads, False)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.ReLU(), nn.Linear(config.ffn_width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, query: Tensor, time: Tensor, gap_m: Tensor, context: Context) -> Tensor:
        scene, ego, instruction, ffn = self.norms
        query = scene(query + self.scene(query, context.scene, gap_m))
        query = ego(query + self.ego(query, context.ego, None))
        query = instruction(query + self.instruction(query, context.instruction, None))
        query = ffn(query + self.ffn(query))
        scale, shift = self.modulation(time)[:, None].chunk(2, dim=-1)
        return query * (1 + scale) + shift


class CrossAttention(nn.Module):
    """Attention of candidates to tokens; with `by_distance` it falls with a learned rate per meter."""

    def __init__(self, width: int, heads: int, by_distance: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # Softplus of these: from nearly blind to distance to only a few meters wide.
        self.rate = nn.Parameter(torch.linspace(-3.0, 1.0, heads)) if by_distance else None

    def forward(self, query: Tensor, tokens: Tensor, gap_m: Tensor | None) -> Tensor:
        """Update (B, A, W) of queries (B, A, W) from tokens (B, n, W); `gap_m` is (B, A, n)."""
        batch, count, width = query.shape
        q = self.q(query).view(batch, count, self.heads, -1).transpose(1, 2)
        k, v = self.kv(tokens).view(batch, tokens.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out for the exporters, as in the encoder.
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, A, n)
        if self.rate is not None and gap_m is not None:
            logits = logits - F.softplus(self.rate).view(1, -1, 1, 1) * gap_m[:, None]
        mixed = logits.softmax(dim=-1) @ v
        update: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return update


def nearest_m(paths_m: Tensor, center_m: Tensor) -> Tensor:
    """How near (B, A, Q) the points of paths (B, A, S, 2) come to each query's center (B, Q, 2)."""
    return (paths_m[:, :, :, None] - center_m[:, None, None]).norm(dim=-1).amin(dim=2)


def keep_on(motion: Tensor) -> Tensor:
    """Paths (B, 2, S, 2) in meters if speed, and if acceleration, stays as in `motion` (B, MOTION_NUMBERS).

    A vehicle that brakes stops. The yaw rate stays, at standstill too: nothing moves then.
    """
    # No tensor of units: to copy one from the host is refused while a CUDA graph is captured.
    units = (SPEED_UNIT_MPS, ACCELERATION_UNIT_MPS2, YAW_RATE_UNIT_RADPS)
    speed, acceleration, yaw_rate = (
        number * unit for number, unit in zip(motion[:, :3].split(1, dim=-1), units, strict=True)
    )
    middle_s = STEP_S * (torch.arange(NUM_STEPS, device=motion.device) + 0.5)
    changed = torch.maximum(speed + acceleration * middle_s, speed.clamp(max=0.0))
    speeds = torch.stack([speed.expand_as(changed), changed], dim=1)  # (B, 2, S)
    yaw = (yaw_rate * middle_s)[:, None]
    return (STEP_S * torch.stack([speeds * yaw.cos(), speeds * yaw.sin()], dim=-1)).cumsum(dim=2)


def sinusoids(x: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines (..., n, 2 F) of values (..., n), wavelengths from about 6 down to 0.06;
    (B, 1) gives (B, 2 F).
    """
    scale = torch.logspace(0, 2, frequencies, device=x.device)
    angle = x[..., None] * scale
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return waves.flatten(-2)
