"""The dashboard shows what it is given where it belongs, and works with anything missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparseoccvla.contracts import CLASS_NAMES, PlannedTrajectory, PlanProposal, Source, SparseOccupancy
from sparseoccvla.dashboard import HEIGHT, WIDTH, Dashboard, draw, occupancy_from_above
from sparseoccvla.palette import CLASS_COLORS_RGB


def one_voxel(x: int, y: int, z: int, label: str) -> SparseOccupancy:
    fake = SparseOccupancy.fake(count=1)
    return replace(
        fake,
        indices=np.array([[x, y, z]], np.uint8),
        labels=np.array([CLASS_NAMES.index(label)], np.uint8),
        observed=np.zeros(fake.grid.shape, bool),
    )


def test_forward_is_up_and_left_is_left():
    picture = occupancy_from_above(one_voxel(190, 180, 8, "car"))
    row, column = np.argwhere(picture.max(axis=2) > 60)[0]
    assert row < 20, "x near the front edge of the grid lies near the top"
    assert column < 30, "y near the left edge lies near the left"


def test_the_highest_voxel_of_a_column_wins():
    low, high = one_voxel(100, 100, 2, "driveable_surface"), one_voxel(100, 100, 9, "car")
    both = replace(
        low,
        indices=np.concatenate([high.indices, low.indices]),
        labels=np.concatenate([high.labels, low.labels]),
        scores=np.ones(2),
    )
    color = occupancy_from_above(both)[99, 99].astype(int)
    assert np.abs(color - CLASS_COLORS_RGB[CLASS_NAMES.index("car")]).sum() < 60


def test_an_empty_dashboard_can_be_drawn():
    assert draw(Dashboard()).shape == (HEIGHT, WIDTH, 3)


def test_a_warning_and_a_fallback_stand_out():
    proposal = PlanProposal.fake()
    plan = PlannedTrajectory(
        proposal.t0_ns, proposal.trajectory, np.full(6, 8.0), np.zeros(6), Source.FALLBACK, "odometry", 0,
        reason="no proposal",
    )  # fmt: skip
    calm = draw(Dashboard(proposal=proposal, trajectory=replace(plan, source=Source.MODEL)))
    alarm = draw(Dashboard(proposal=proposal, trajectory=plan, warning="UNTRAINED"))
    reddish = [np.sum((p[..., 0] > 200) & (p[..., 2] < 130) & (p[..., 1] < 140)) for p in (calm, alarm)]
    assert reddish[1] > reddish[0] + 100
