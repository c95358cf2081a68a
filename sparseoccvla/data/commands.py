"""Driving commands of public data sets. Two numberings are in use and they contradict each other.

Neither is a route: both come from where the vehicle was seen to go, so their source is always
"future_trajectory". A figure made with them is made with a hint from the answer.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import Command
from sparseoccvla.errors import InputError

FUTURE_TRAJECTORY = "future_trajectory"
SIDE_M = 2.0


class CommandEncoding(Enum):
    """What the integers 0, 1, 2 of a public data set mean."""

    OMNIDRIVE = (Command.LEFT, Command.RIGHT, Command.STRAIGHT)
    UNIAD = (Command.RIGHT, Command.LEFT, Command.STRAIGHT)  # VAD, SparseDrive, DiffusionDrive too

    def decode(self, number: int) -> Command:
        """The command that `number` stands for.

        Raises:
            InputError: a number that the encoding does not have.
        """
        if not 0 <= number < len(self.value):
            raise InputError(f"command {number} in the {self.name} encoding, wanted 0, 1 or 2")
        return self.value[number]


def command_from_future(waypoints_m: NDArray[np.floating], valid: NDArray[np.bool_]) -> Command:
    """OmniDrive's rule: which side the last known waypoint lies on, 2 m or more from straight ahead.

    Args:
        waypoints_m: (S, 2 or more) x y in base_link at t0.
        valid: (S,) whether each is known; without any the command is UNKNOWN.
    """
    if not valid.any():
        return Command.UNKNOWN
    left_m = waypoints_m[np.flatnonzero(valid)[-1], 1]
    if left_m >= SIDE_M:
        return Command.LEFT
    return Command.RIGHT if left_m <= -SIDE_M else Command.STRAIGHT
