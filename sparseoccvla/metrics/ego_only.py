"""The ego-only planner: what speed, past and command alone say. Trained on the model's frames and steps.

After AD-MLP (E2E-AD/AD-MLP): an MLP of two hidden layers from 21 numbers to a trajectory. Open-loop L2 is
mostly this, so no planning table may lack it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseoccvla.contracts import NUM_COMMANDS, NUM_STEPS, PAST_POSE_TIMES_S, STEP_S, Command, EgoState

NUM_FEATURES = 5 + len(PAST_POSE_TIMES_S) * 4 + NUM_COMMANDS


def ego_features(ego: EgoState, command: Command) -> NDArray[np.float32]:
    """(24,) speed, acceleration, yaw rate, steering, whether motion is known; four past poses, each with
    whether it is known; the command as one of three (none for UNKNOWN). Unknown values are 0.
    """
    motion = [ego.speed_mps, ego.acceleration_mps2, ego.yaw_rate_radps, ego.steering_rad * ego.steering_valid]
    past = np.concatenate([ego.past_poses * ego.past_valid[:, None], ego.past_valid[:, None]], axis=1)
    which = np.zeros(NUM_COMMANDS)
    if command is not Command.UNKNOWN:
        which[command.anchor_row] = 1
    known = float(ego.motion_valid)
    return np.concatenate([np.array(motion) * known, [known], past.ravel(), which]).astype(np.float32)


class EgoOnlyPlanner(nn.Module):
    """Features (B, 24) to a trajectory (B, 6, 3) of x_m, y_m, yaw_rad in base_link at t0.

    It predicts the difference to constant velocity, so that an untrained one already drives straight on.
    """

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        # Rough sizes of the inputs, so that one learning rate fits all.
        scale = torch.tensor(
            [10.0, 2, 0.3, 0.3, 1] + [10.0, 2, 0.5, 1] * len(PAST_POSE_TIMES_S) + [1.0] * NUM_COMMANDS
        )
        self.register_buffer("scale", scale)
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, NUM_STEPS * 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Trajectories of features of `ego_features`."""
        change = self.head(self.layers(features / self.get_buffer("scale"))).view(-1, NUM_STEPS, 3)
        times = STEP_S * torch.arange(1, NUM_STEPS + 1, device=features.device)
        rolling = torch.zeros_like(change)
        rolling[..., 0] = features[:, :1] * times
        return rolling + change

    @torch.no_grad()
    def plan(self, ego: EgoState, command: Command) -> NDArray[np.float64]:
        """(6, 3) for one state."""
        device = self.head.weight.device
        features = torch.from_numpy(ego_features(ego, command)).to(device)
        trajectory: NDArray[np.float64] = self(features[None])[0].double().cpu().numpy()
        return trajectory
