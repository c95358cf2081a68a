import math
from dataclasses import replace

import pytest
import torch

from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.contracts import FREE_CLASS, NUM_CLASSES, EncoderInput
from sparseoccvla.encoder import (
    Auxiliary,
    AuxiliaryHead,
    Encoder,
    EncoderConfig,
    Scene,
    Seeds,
    _surface,
    ground_log_depth,
)
from sparseoccvla.training.losses import (
    OccupancyLossConfig,
    OccupancyTarget,
    auxiliary_terms,
    occupancy_terms,
    reduce_terms,
)

torch.set_num_threads(1)
SIZE = (64, 128)
# OPUS's form at toy size; ROUND adds what a small network needs to learn fast.
OPUS = EncoderConfig(
    image_size_px=SIZE, frames=2,
    backbone=BackboneConfig("small", 8, (8, 16), (1, 1), 32),
    queries=12, width=32, heads=4, sampling_points=2, mixing_points=4, ffn_width=32,
    points=(2, 4), dropout=0.0, least_spread_m=(2.0, 0.5),
)  # fmt: skip
ROUND = replace(OPUS, free_class=True, auxiliary_width=8, seeded_queries=4, point_class_width=8)


def inputs(batch: int = 2, frames: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, frames, 6, 3, *SIZE, generator=generator) * 255
    matrix = torch.from_numpy(EncoderInput.fake(size=SIZE).image_from_odom).float()
    image_from_base = matrix.expand(batch, frames, -1, -1, -1)
    return images, image_from_base, torch.linalg.inv(image_from_base[:, 0]), torch.ones(batch, frames, 6)


def network(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config)


def loss_of(net: Encoder) -> torch.Tensor:
    out = net(*inputs())
    generator = torch.Generator().manual_seed(2)
    targets = [
        OccupancyTarget(
            torch.rand(200, 3, generator=generator) * 40 - 20,
            torch.randint(NUM_CLASSES, (200,), generator=generator),
            torch.ones(200, dtype=torch.bool),
            torch.eye(4),
        )
        for _ in range(2)
    ]
    terms = occupancy_terms(out, targets, OccupancyLossConfig())
    if out.auxiliary is not None:
        shape = out.auxiliary.log_depth.shape
        labels = torch.randint(NUM_CLASSES, shape, generator=generator)
        depth_m = torch.rand(shape, generator=generator) * 30 + 1
        terms |= auxiliary_terms(out.auxiliary, labels, depth_m, OccupancyLossConfig())
    # The features themselves are what the stages behind train on.
    return reduce_terms(terms, {})[0] + out.features.square().mean()


@pytest.mark.parametrize("config", [OPUS, ROUND], ids=["opus", "round"])
def test_shapes(config: EncoderConfig) -> None:
    out = network(config).eval()(*inputs())
    assert out.features.shape == (2, 12, 32)
    assert [p.shape for p in out.points_m] == [(2, 12, 2, 3), (2, 12, 4, 3)]
    assert [x.shape for x in out.logits] == [(2, 12, r, config.classes) for r in config.points]
    assert (out.auxiliary is None) == (config is OPUS)


@pytest.mark.parametrize("config", [OPUS, ROUND], ids=["opus", "round"])
def test_gradients_reach_every_parameter(config: EncoderConfig) -> None:
    net = network(config).train()
    loss_of(net).backward()
    dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_without_a_spread_the_first_offsets_learn_nothing() -> None:
    # The control of the test above, and OPUS's own behavior: one point per query has no spread.
    net = network(replace(OPUS, least_spread_m=())).train()
    loss_of(net).backward()
    assert net.layers[0].sampling.offset.weight.grad.abs().sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("config", [OPUS, ROUND], ids=["opus", "round"])
def test_the_loss_falls_on_one_batch(config: EncoderConfig) -> None:
    net = network(config).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net = network(ROUND).eval()
    with torch.no_grad():
        together = net(*inputs())
        alone = net(*(tensor[1:] for tensor in inputs()))
    assert torch.allclose(together.features[1:], alone.features, atol=1e-4)


def test_the_order_of_frames_matters() -> None:
    net = network(OPUS).eval()
    images, *rest = inputs()
    with torch.no_grad():
        assert not torch.allclose(net(images, *rest).features, net(images.flip(1), *rest).features, atol=1e-3)


def test_rays_of_cells_meet_the_ground_at_its_depth() -> None:
    base_from_image = inputs(batch=1)[2]
    depth_m = ground_log_depth(base_from_image, (8, 16), SIZE).exp()
    v, u = torch.meshgrid(torch.arange(8) * 8 + 4.0, torch.arange(16) * 8 + 4.0, indexing="ij")
    rays = torch.stack([u, v, torch.ones(8, 16)], dim=-1) * depth_m[..., None]
    points = torch.cat([rays, torch.ones(1, 6, 8, 16, 1)], dim=-1)
    z_m = (base_from_image[:, :, 2, None, None] * points).sum(dim=-1)
    met = (depth_m > 0.51) & (depth_m < 59.9)
    assert met.any(dim=(2, 3)).all(), "every camera sees ground"
    assert z_m[met].abs().max() < 1e-3
    assert (depth_m[:, :, 0] > 59.9).all(), "above the horizon it is far"


def test_a_thing_is_as_far_as_the_ground_in_the_row_where_it_stands() -> None:
    config = replace(ROUND, depth_by_contact=True)
    head = AuxiliaryHead(config)
    base_from_image = inputs(batch=1)[2]
    last = head.net[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[-head.rows :] = torch.tensor([0.0, 0, 0, 0, 0, 0, 50.0, 0])  # the row before the last
        said = head(torch.randn(1, 6, 32, 8, 16), base_from_image)
    ground = ground_log_depth(base_from_image, (8, 16), SIZE)
    torch.testing.assert_close(said.log_depth, ground[:, :, 6:7].expand(-1, -1, 8, -1))
    missing = torch.zeros(1, 6, 4, 4)
    assert torch.isfinite(head(torch.randn(1, 6, 32, 8, 16), missing).log_depth).all()


def test_seeds_lie_on_what_the_head_sees_standing() -> None:
    torch.manual_seed(0)
    seeds = Seeds(ROUND)
    _, image_from_base, base_from_image, valid = inputs(batch=1)
    logits = torch.zeros(1, 6, NUM_CLASSES + 1, 8, 16)
    logits[:, :, FREE_CLASS] = 10.0
    logits[0, 2, 4, 5, 9] = 30.0  # one car in one cell of camera 2
    logits[0, 2, FREE_CLASS, 5, 9] = 0.0
    depth_m = torch.full((1, 6, 8, 16), 12.0)
    level = torch.randn(1, 6, 32, 8, 16)
    points_m, lifted_m, features = seeds(
        level, Auxiliary(logits, depth_m.log()), base_from_image, valid[:, 0]
    )
    assert (points_m.shape, lifted_m.shape, features.shape) == ((1, 4, 3), (1, 4, 16, 3), (1, 4, 32))
    u, v, depth = (image_from_base[0, 0, 2] @ torch.cat([points_m[0, 0], torch.ones(1)]))[:3]
    assert depth.item() == pytest.approx(12.0, abs=1e-3)
    assert (u / depth / 8).item() == pytest.approx(9.5, abs=1e-2)
    assert (v / depth / 8).item() == pytest.approx(5.5, abs=1e-2)
    assert torch.allclose(features[0, 0], seeds.feature(level[0, 2, :, 5, 9]), atol=1e-5)
    # The square is rows 4 to 7 and columns 8 to 11; row by row, the seed is its sixth cell.
    assert torch.allclose(lifted_m[0, 0, 5], points_m[0, 0])
    u, v, depth = (image_from_base[0, 0, 2] @ torch.cat([lifted_m[0, 0, 15], torch.ones(1)]))[:3]
    assert (u / depth / 8).item() == pytest.approx(11.5, abs=1e-2)
    assert (v / depth / 8).item() == pytest.approx(7.5, abs=1e-2)


def test_points_of_seeded_queries_start_on_lifted_cells() -> None:
    torch.manual_seed(0)
    config = replace(ROUND, points=(2, 16), lifted_points=True)
    net = Encoder(config).eval()
    last = net.layers[-1].offsets[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    with torch.no_grad():
        got = net(*inputs(batch=1)).points_m[-1]
    spread = got.std(dim=2).norm(dim=-1)[0]  # (Q,)
    learned = len(net.initial_points)
    assert spread[:learned].max() < 1e-4  # without offsets on their center
    assert spread[learned:].min() > 0.01


def test_points_of_lifted_cells_stay_within_their_reach() -> None:
    config = replace(ROUND, points=(2, 16), lifted_points=True, lifted_reach_m=0.5)
    net = Encoder(config).eval()
    given = inputs(batch=1)
    last = net.layers[-1].offsets[-1]
    with torch.no_grad():
        found_m = []
        for factor in (0.0, 1.0, 1e3):
            torch.manual_seed(0)
            last.reset_parameters()
            last.weight.mul_(factor)
            last.bias.mul_(factor)
            found_m.append(net(*given).points_m[-1][:, -config.seeded_queries :])
    still, moved, far = found_m
    assert 0 < (moved - still).abs().max() < 0.5
    assert (far - still).abs().max() == pytest.approx(0.5, abs=1e-3)


def test_lifted_points_want_whole_squares() -> None:
    config = replace(ROUND, points=(2, 16), lifted_points=True)
    with pytest.raises(ValueError, match="multiples of 12"):
        replace(config, square=(4, 3))


def test_lifted_points_lie_before_and_behind_their_cell_on_its_ray() -> None:
    torch.manual_seed(0)
    config = replace(ROUND, points=(2, 48), lifted_points=True, lifted_spread=0.3)
    _, _, base_from_image, valid = inputs(batch=1)
    logits = torch.randn(1, 6, NUM_CLASSES + 1, 8, 16)
    said = Auxiliary(logits, torch.full((1, 6, 8, 16), 12.0).log())
    level = torch.randn(1, 6, 32, 8, 16)
    _, lifted_m, _ = Seeds(config)(level, said, base_from_image, valid[:, 0])
    before_m, on_m, behind_m = lifted_m[0].unflatten(1, (3, 16)).unbind(dim=1)  # (S, cells, 3)
    camera_m = base_from_image[0, :, :3, 3]
    ray = on_m[:, :, None] - camera_m  # (S, cells, N, 3)
    for points_m, share in ((before_m, -0.3), (behind_m, 0.3)):
        off_m = (points_m[:, :, None] - camera_m - math.exp(share) * ray).norm(dim=-1)
        assert off_m.amin(dim=-1).max() < 1e-3  # of one of the cameras
    flat = Seeds(replace(config, lifted_spread=0.0))(level, said, base_from_image, valid[:, 0])[1]
    assert torch.allclose(flat[:, :, :16], flat[:, :, 16:32])  # the control


def test_a_point_on_the_seen_surface_differs_from_one_behind_it() -> None:
    torch.manual_seed(0)
    config = replace(ROUND, surface_cue=True)
    net = Encoder(config).eval()
    classes = net.layers[-1].classes
    images, image_from_base, base_from_image, valid = inputs(batch=1)
    with torch.no_grad():
        decoded = net(images, image_from_base, base_from_image, valid)
        levels = [torch.stack([level, level], dim=1) for level in net.extract(images[:, 0])]
        said = decoded.auxiliary
        depth_m = torch.full_like(said.log_depth, 10.0)
        points_m = torch.tensor([[[[10.0, 0.0, 1.0], [12.0, 0.0, 1.0]]]])

        def near(seen_at_m: float) -> torch.Tensor:
            surface = _surface(said._replace(log_depth=depth_m.new_full(depth_m.shape, seen_at_m).log()))
            scene = Scene(levels, image_from_base, valid, surface)
            return classes(torch.zeros(1, 1, 32), points_m, points_m.mean(dim=2), scene, None)

        assert not torch.allclose(near(10.0), near(12.0), atol=1e-4)
    with pytest.raises(ValueError, match="surface_cue needs auxiliary_width and point_class_width"):
        replace(config, point_class_width=0)


def test_the_paper_size_decoder_has_the_published_parameters() -> None:
    with torch.device("meta"):
        net = Encoder(EncoderConfig())
    decoder = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("backbone."))
    assert decoder == pytest.approx(50.85e6, rel=0.05)


def test_scores_leave_free_out() -> None:
    net = network(ROUND)
    scores = net.scores(torch.randn(3, NUM_CLASSES + 1))
    assert scores.shape == (3, NUM_CLASSES)
    assert (scores.sum(dim=-1) < 1).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 33}, "width 33 is not a multiple of 4 groups and 4 heads"),
        ({"width": 64}, "backbone.pyramid_width is 32, wanted the width 64"),
        ({"least_spread_m": (1.0,)}, "least_spread_m has 1 values for 2 layers"),
        ({"seeded_queries": 3}, "seeded_queries needs auxiliary_width"),
    ],
)
def test_sizes_that_do_not_meet_are_refused(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(OPUS, **changes)
