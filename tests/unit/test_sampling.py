import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparseoccvla.contracts import EncoderInput
from sparseoccvla.sampling import project, sample, stack_views, unstack_views

torch.set_num_threads(1)
HEIGHT, WIDTH, CAMERAS, CHANNELS = 128, 352, 6, 5
ROWS, COLUMNS = 16, 44


@pytest.fixture
def rig() -> torch.Tensor:
    return torch.from_numpy(EncoderInput.fake(size=(HEIGHT, WIDTH)).image_from_odom).float()[None, None]


@pytest.fixture
def points_m() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform((-40, -40, -2), (40, 40, 6), (1, 3000, 3))).float()


def per_view(maps: torch.Tensor, where) -> torch.Tensor:
    """The plain way: sample the one map of each point's own camera. (C, K)"""
    result = torch.zeros(CHANNELS, where.u.shape[-1])
    for camera in range(CAMERAS):
        mine = where.view[0, 0] == camera
        grid = torch.stack([where.u[0, 0, mine], where.v[0, 0, mine]], dim=-1) * 2 - 1
        result[:, mine] = F.grid_sample(
            maps[:, camera], grid[None, None], padding_mode="zeros", align_corners=True
        )[0, :, 0]
    return result


def test_stacked_sampling_equals_a_sample_of_each_view(rig, points_m) -> None:
    # In fp32 a place among 108 stacked rows is known to 1e-5 of a row, so the maps are as smooth as
    # feature maps are: from cell to cell they change by at most a half.
    coarse = torch.rand(
        CAMERAS, CHANNELS, ROWS // 2, COLUMNS // 2, generator=torch.Generator().manual_seed(0)
    )
    maps = F.interpolate(coarse, (ROWS, COLUMNS), mode="bilinear", align_corners=True)[None]
    where = project(points_m, rig, torch.ones(1, 1, CAMERAS), (HEIGHT, WIDTH))
    stacked = sample(
        stack_views(maps), where.u[0, 0][None, None], where.v[0, 0][None, None], where.view, CAMERAS
    )
    expected = per_view(maps, where)
    assert (stacked[0, :, 0] - expected).abs().max() < 1e-5
    assert expected.max() > 0.9, "something was read"
    unseen = where.seen[0, 0] == 0
    assert 50 < unseen.sum() < 2500, "both kinds of points took part"


def test_without_the_empty_rows_neighboring_cameras_would_mix(rig, points_m) -> None:
    maps = torch.randn(1, CAMERAS, CHANNELS, ROWS, COLUMNS)
    where = project(points_m, rig, torch.ones(1, 1, CAMERAS), (HEIGHT, WIDTH))
    bare = maps.transpose(1, 2).flatten(2, 3)  # views one below the other, no rows between
    row = where.v[0, 0] * (ROWS - 1) + where.view[0, 0] * ROWS
    column = where.u[0, 0] * (COLUMNS - 1)
    grid = torch.stack([column * 2 / (COLUMNS - 1) - 1, row * 2 / (bare.shape[2] - 1) - 1], dim=-1)
    read = F.grid_sample(bare, grid[None, None], padding_mode="zeros", align_corners=True)[0, :, 0]
    assert (read - per_view(maps, where)).abs().max() > 0.1


def test_the_first_seeing_camera_is_read(rig) -> None:
    both = rig.clone()
    both[:, :, 3] = both[:, :, 1]  # two cameras that look the same way
    ahead = torch.tensor([[[10.0, -13.0, 1.0]]])
    where = project(ahead, both, torch.ones(1, 1, CAMERAS), (HEIGHT, WIDTH))
    assert where.view.item() == 1
    masked = torch.ones(1, 1, CAMERAS)
    masked[..., 1] = 0
    where = project(ahead, both, masked, (HEIGHT, WIDTH))
    assert (where.view.item(), where.seen.item()) == (3, 1)


def test_a_point_behind_all_cameras_is_camera_zero_and_unseen(rig) -> None:
    where = project(torch.tensor([[[0.0, 0.0, 50.0]]]), rig, torch.ones(1, 1, CAMERAS), (HEIGHT, WIDTH))
    assert (where.view.item(), where.seen.item(), where.valid.item()) == (0, 0, 1)


def test_projection_is_the_matrix(rig) -> None:
    point = torch.tensor([12.0, 0.5, 0.8])
    where = project(point[None, None], rig, torch.ones(1, 1, CAMERAS), (HEIGHT, WIDTH))
    u, v, depth = (rig[0, 0, 0] @ torch.cat([point, torch.ones(1)]))[:3]
    assert where.u.item() == pytest.approx(float(u / depth / WIDTH), abs=1e-6)
    assert where.v.item() == pytest.approx(float(v / depth / HEIGHT), abs=1e-6)


def test_projection_keeps_its_precision_under_autocast(rig, points_m) -> None:
    valid = torch.ones(1, 1, CAMERAS)
    plain = project(points_m, rig, valid, (HEIGHT, WIDTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = project(points_m, rig, valid, (HEIGHT, WIDTH))
    assert torch.equal(plain.u, cast.u)


def test_stacking_is_undone_by_unstacking() -> None:
    maps = torch.randn(2, CAMERAS, 3, 4, 7)
    assert torch.equal(unstack_views(stack_views(maps), CAMERAS), maps)
