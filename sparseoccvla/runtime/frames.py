"""From feature sets to a decoder's inputs: the part that no backend may do differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import ContractError
from sparseoccvla.runtime.base import FeatureSet


@dataclass(frozen=True)
class DecoderFrames:
    """T frames, newest first, as a decoder reads them."""

    maps: tuple[Any, ...]  # each the backend's own
    image_from_base: NDArray[np.float32]  # (T, N, 4, 4) base_link at the newest t0 to pixels
    base_from_image: NDArray[np.float32]  # (N, 4, 4) inverse for the newest frame
    valid: NDArray[np.float32]  # (T, N) 1 for a picture that takes part, 0 for a masked one


def decoder_frames(frames: Sequence[FeatureSet | None], count: int, repeat_history: bool) -> DecoderFrames:
    """Fill masked history so that shapes stay fixed.

    A masked frame borrows the maps of a newer one; none of its cameras is valid, unless the weights were
    trained with a missing frame repeated (`repeat_history`).

    Raises:
        ContractError: another number of frames than `count`, or no newest one.
    """
    newest = frames[0] if frames else None
    if newest is None or len(frames) != count:
        came = [frame and frame.t0_ns for frame in frames]
        raise ContractError(
            f"decode() got frames {came}, wanted {count} with a FeatureSet first, "
            "None only for masked history"
        )
    used = [newest]
    for frame in frames[1:]:
        used.append(frame or used[-1])
    valid = np.stack([frame.valid for frame in used])
    if not repeat_history:
        valid &= np.array([frame is not None for frame in frames])[:, None]
    image_from_base = np.stack([frame.image_from_odom for frame in used]) @ newest.odom_from_base
    return DecoderFrames(
        tuple(frame.maps for frame in used),
        image_from_base.astype(np.float32),
        np.linalg.inv(image_from_base[0]).astype(np.float32),
        valid.astype(np.float32),
    )
