from dataclasses import replace

import numpy as np
import pytest
import torch

from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.contracts import EgoState
from sparseoccvla.ego_state import EGO_NUMBERS, ego_numbers
from sparseoccvla.geometry import arc_pose
from sparseoccvla.planner import Diffusion, Planner, PlannerConfig, PlannerInputs, keep_on
from sparseoccvla.training.losses import reduce_terms, score_term, trajectory_term

torch.set_num_threads(1)
PAPER = PlannerConfig(query_width=16, token_width=24, width=32, heads=4, ffn_width=32)
ROUND = replace(PAPER, score_with_ego=True, score_along_path=True, look_along_path=True, keep_on_cue=True)
ANCHORS = torch.from_numpy(analytic_anchors()).flatten(0, 1)
BOTH = pytest.mark.parametrize("config", [PAPER, ROUND], ids=["paper", "round"])


def inputs(batch: int = 3) -> PlannerInputs:
    generator = torch.Generator().manual_seed(1)
    has = torch.ones(batch)
    has[0] = 0.0
    return PlannerInputs(
        torch.randn(batch, 10, 16, generator=generator),
        torch.randn(batch, 10, 4, 3, generator=generator) * 10,
        torch.randn(batch, EGO_NUMBERS, generator=generator),
        torch.randn(batch, 24, generator=generator),
        has,
        torch.rand(batch, generator=generator),
    )


def network(config: PlannerConfig) -> Planner:
    torch.manual_seed(0)
    return Planner(config)


def loss_of(net: Planner) -> torch.Tensor:
    given = inputs()
    positive = torch.tensor([2, 9, 15])
    future_m = ANCHORS[positive] + 0.3
    noise = torch.randn(3, 1, 6, 2, generator=torch.Generator().manual_seed(3))
    clean = net.denoise(given, ANCHORS[positive][:, None], noise, torch.tensor([0, 20, 39]))
    valid = torch.ones(3, 6, dtype=torch.bool)
    terms = {
        "trajectory": trajectory_term(clean, future_m, valid, net.diffusion),
        "score": score_term(net.score_logits(given, ANCHORS), positive, torch.ones(3)),
    }
    return reduce_terms(terms, {})[0]


def test_the_noise_of_the_schedule_is_the_published_one() -> None:
    noise = Diffusion(PAPER).noise
    for t, wanted in ((8, 0.03159), (20, 0.05195), (39, 0.07992)):
        assert noise[t].item() == pytest.approx(wanted, abs=1e-5)


def test_a_linear_schedule_would_have_other_noise() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    noise = (1 - torch.cumprod(1 - betas, 0)).sqrt()
    assert abs(noise[20].item() - 0.05195) > 1e-3


def moving(speed_mps: float, acceleration_mps2: float, yaw_rate_radps: float) -> EgoState:
    return replace(
        EgoState.fake(0),
        speed_mps=speed_mps,
        acceleration_mps2=acceleration_mps2,
        yaw_rate_radps=yaw_rate_radps,
        motion_valid=True,
    )


def kept_on(ego: EgoState) -> torch.Tensor:
    return keep_on(torch.from_numpy(ego_numbers(ego))[None, :6])[0]


def test_keeping_on_is_constant_velocity_or_constant_acceleration() -> None:
    ego = moving(8.0, 1.5, 0.2)
    steady, changing = kept_on(ego)
    arc = [arc_pose(8.0 * 0.5 * step, 0.2 * 0.5 * step)[:2] for step in range(1, 7)]
    assert torch.allclose(steady, torch.from_numpy(np.array(arc)).float(), atol=0.05)
    length_m = changing.diff(dim=0, prepend=torch.zeros(1, 2)).norm(dim=-1).sum()
    assert length_m.item() == pytest.approx(8.0 * 3 + 1.5 * 3**2 / 2, abs=1e-3)


def test_who_brakes_stops_and_does_not_turn_back() -> None:
    _, braking = kept_on(moving(2.0, -4.0, 0.0))
    assert braking[:, 0].diff().abs().max() < 0.01
    _, backing = kept_on(moving(-1.0, 0.0, 0.0))
    assert backing[-1, 0].item() == pytest.approx(-3.0, abs=1e-4)


def test_offsets_and_paths_undo_each_other() -> None:
    diffusion = Diffusion(PAPER)
    assert torch.allclose(diffusion.paths_m(diffusion.normalized_offsets(ANCHORS)), ANCHORS, atol=1e-4)


def test_motorway_speed_is_inside_and_nothing_is_capped_beyond() -> None:
    diffusion = Diffusion(PAPER)
    for speed_mps, largest in ((45.0, 1.0 + 1e-6), (60.0, 2.0)):
        path = torch.stack([speed_mps * 0.5 * torch.arange(1, 7), torch.zeros(6)], dim=-1)
        offsets = diffusion.normalized_offsets(path)
        assert offsets.abs().max() <= largest
        assert torch.allclose(diffusion.paths_m(offsets), path, atol=1e-3)


def test_ddim_to_a_known_clean_path_is_exact() -> None:
    diffusion = Diffusion(PAPER)
    clean, noise = torch.randn(1, 2, 6, 2), torch.randn(1, 2, 6, 2)
    noisy = diffusion.add_noise(clean, noise, 20)
    stepped = diffusion.ddim_step(noisy, clean, 20, 8)
    assert torch.allclose(stepped, diffusion.add_noise(clean, noise, 8), atol=1e-5)


@BOTH
def test_shapes(config: PlannerConfig) -> None:
    candidates_m, scores = network(config)(inputs(), ANCHORS, torch.randn(3, 18, 6, 2))
    assert (candidates_m.shape, scores.shape) == ((3, 18, 6, 2), (3, 18))
    assert ((scores >= 0) & (scores <= 1)).all()


@BOTH
def test_gradients_reach_every_parameter(config: PlannerConfig) -> None:
    net = network(config)
    loss_of(net).backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


@BOTH
def test_the_loss_falls_on_one_batch(config: PlannerConfig) -> None:
    net = network(config)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_untrained_planner_drives_its_anchors() -> None:
    candidates_m, _ = network(ROUND).eval()(inputs(), ANCHORS, torch.randn(3, 18, 6, 2))
    assert (candidates_m - ANCHORS).abs().max() < 1.5


def test_without_reasoning_neither_token_nor_age_is_read() -> None:
    net, given = network(ROUND).eval(), inputs()
    other = given._replace(reasoning=given.reasoning + 5, reasoning_age_s=given.reasoning_age_s + 1)
    noise = torch.zeros(3, 18, 6, 2)
    for before, after in zip(net(given, ANCHORS, noise), net(other, ANCHORS, noise), strict=True):
        assert torch.equal(before[0], after[0]), "sample 0 has the null token"
        assert not torch.equal(before[1], after[1])


def test_the_papers_scorer_does_not_know_the_ego() -> None:
    given = inputs()
    faster = given._replace(ego=given.ego + 1)
    for config, same in ((PAPER, True), (ROUND, False)):
        net = network(config).eval()
        assert torch.equal(net.score_logits(given, ANCHORS), net.score_logits(faster, ANCHORS)) == same


def test_the_papers_scorer_does_not_see_the_scene() -> None:
    given = inputs()
    other = given._replace(features=given.features.flip(1))
    for config, same in ((PAPER, True), (ROUND, False)):
        net = network(config).eval()
        assert torch.equal(net.score_logits(given, ANCHORS), net.score_logits(other, ANCHORS)) == same


def test_an_anchor_is_scored_by_what_lies_along_it() -> None:
    net, given = network(ROUND).eval(), inputs()
    ahead, behind = ANCHORS[:, -1, 0].argmax(), ANCHORS[:, -1, 0].argmin()
    assert ANCHORS[behind, -1, 0] < 5 < 20 < ANCHORS[ahead, -1, 0]
    points_m = given.points_m.clone()
    points_m[:] = torch.tensor([0.0, 0.0, 0.0])
    points_m[:, 0] = torch.tensor([*ANCHORS[ahead, -1].tolist(), 0.0])
    given = given._replace(points_m=points_m)
    thing = given.features.clone()
    thing[:, 0] = thing[:, 0].flip(-1)
    moved = (
        net.score_logits(given._replace(features=thing), ANCHORS) - net.score_logits(given, ANCHORS)
    ).abs()
    assert (moved[:, ahead] > 2 * moved[:, behind]).all()


def test_the_decoder_is_told_how_far_the_anchor_is_from_keeping_on_not_the_noise() -> None:
    net, given = network(replace(ROUND, look_along_path=False)).eval(), inputs()
    first = net.decoder.query[0]
    with torch.no_grad():
        first.weight[:, :-24] = 0  # all but the cue
    t = torch.tensor([20, 20, 20])
    noises = [torch.randn(3, 18, 6, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    paths_m = ANCHORS.expand(3, -1, -1, -1)
    one, other = (net.denoise(given, paths_m, noise, t) for noise in noises)
    assert torch.equal(one, other)
    start = net.diffusion.normalized_offsets
    faster = net.denoise(given, 1.1 * paths_m, noises[0], t)
    assert not torch.allclose(faster - start(1.1 * paths_m), one - start(paths_m)), "the cue is read"


def test_ego_numbers_hide_what_is_not_valid() -> None:
    ego = replace(EgoState.fake(), steering_rad=0.3, steering_valid=True)
    blind = replace(ego, motion_valid=False, steering_valid=False, past_valid=np.zeros(4, bool))
    assert ego_numbers(ego).shape == (EGO_NUMBERS,)
    assert ego_numbers(ego)[0] == pytest.approx(0.8)
    assert not ego_numbers(blind).any()
