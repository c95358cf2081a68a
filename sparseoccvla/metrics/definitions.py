"""What each protocol counts, in one sentence. Reports carry it and `docs/metrics.md` is made from it."""

from __future__ import annotations

from sparseoccvla.metrics.language import Tokens
from sparseoccvla.metrics.occupancy import Convention
from sparseoccvla.metrics.planning import PlanningProtocol

PLANNING = {
    PlanningProtocol.STP3: (
        "L2 and collision averaged over steps up to each horizon; vehicles and people on a 0.5 m grid, "
        "the vehicle's box never turned; steps where the driven box collides are left out."
    ),
    PlanningProtocol.ADMLP: (
        "As stp3 (AD-MLP's copy of it); published figures differ by their list of 4,819 samples with 2 s "
        "of past."
    ),
    PlanningProtocol.UNIAD: (
        "L2 and collision at the step of each horizon, not averaged; else as stp3. UniAD draws vehicles "
        "only; steps without a known future count as 0 m and no collision."
    ),
    PlanningProtocol.VAD: (
        "As stp3 on the raster as stored, whose rows it counts from the front; no center-cell figure."
    ),
    PlanningProtocol.SPARSEDRIVE: (
        "Averaged over steps up to each horizon; exact polygons of every annotated agent, the vehicle's "
        "box turned along the path; steps where the driven box collides are left out."
    ),
    PlanningProtocol.OMNIDRIVE: (
        "L2 averaged over steps up to each horizon; collision is any hit up to it; vehicles on a 0.1 m "
        "grid, the box turned by steps of 1 m or more, 1.486 m ahead of the rear axle."
    ),
    PlanningProtocol.EXACT: (
        "Ours: L2 and collision averaged over steps up to each horizon, and any hit up to it; exact "
        "rectangles of every agent, the box turned along the path and kept while standing; steps where "
        "the driven box collides are left out."
    ),
}

OCCUPANCY = {
    Convention.OCC3D: (
        "IoU of counts summed over all samples, mean of 17 classes without free; a class nobody shows is "
        "left out, one only predicted is 0; voxels labeled 255 are ignored."
    ),
    Convention.SPARSEOCC: (
        "IoU of counts summed over all samples, mean of 17 classes without free; a class without ground "
        "truth is left out; voxels labeled 255 are ignored."
    ),
    Convention.SPARSEWORLD: (
        "As occ3d; forecasts are scored with it in each future vehicle frame and without a mask."
    ),
    Convention.OCCWORLD: (
        "IoU of counts summed over all samples, mean of 17 classes without free; a class without ground "
        "truth is 1; voxels labeled 255 are ignored."
    ),
}

RAYS = (
    "RayIoU: 14,040 rays from each origin; right are those whose first occupied voxel has the true "
    "class and a depth within 1, 2 or 4 m; rays that are free in the ground truth are left out; no "
    "mask."
)

LANGUAGE = {
    Tokens.RAW: (
        "Strings as they are, split at white space (HERMES, SparseOccVLA); BLEU, ROUGE-L, CIDEr (0 to "
        "10) over this corpus; METEOR by nltk on its own words."
    ),
    Tokens.PTB: (
        "Penn-Treebank tokens in lower case without punctuation (COCO captions); BLEU, ROUGE-L, CIDEr (0 "
        "to 10) over this corpus; METEOR by nltk on its own words."
    ),
}


# Whose published figures follow which protocol; the sources are in the modules.
_USERS = {
    PlanningProtocol.STP3: "ST-P3; UniAD's v2 switch stp3",
    PlanningProtocol.ADMLP: "AD-MLP, PreWorld, SparseWorld",
    PlanningProtocol.UNIAD: "UniAD's paper; OccWorld and Drive-OccWorld in their own tables",
    PlanningProtocol.VAD: "VAD and papers that took over its evaluator",
    PlanningProtocol.SPARSEDRIVE: "SparseDrive, DiffusionDrive (nuScenes)",
    PlanningProtocol.OMNIDRIVE: "OmniDrive; by its file names, SparseOccVLA",
    PlanningProtocol.EXACT: "this project",
    Convention.OCC3D: "the CVPR 2023 challenge, FB-OCC and most camera-mask figures",
    Convention.SPARSEOCC: "SparseOcc's and OPUS's mIoU",
    Convention.SPARSEWORLD: "SparseWorld, PreWorld and, by lineage, SparseOccVLA (forecasts, no mask)",
    Convention.OCCWORLD: "OccWorld (forecasts, no mask)",
    Tokens.RAW: "HERMES, SparseOccVLA",
    Tokens.PTB: "COCO captions and papers that follow them",
}


def markdown() -> str:
    """The tables of `docs/metrics.md`, one for each kind of score."""
    lines = []
    for title, table in (
        ("Planning: `--protocol`", PLANNING),
        ("Occupancy: `--convention`", OCCUPANCY),
        ("Language: `--tokens`", LANGUAGE),
    ):
        lines += [f"### {title}", "", "| name | what it counts | who uses it |", "|---|---|---|"]
        lines += [f"| `{name}` | {meaning} | {_USERS[name]} |" for name, meaning in table.items()]
        lines.append("")
    return "\n".join([*lines, RAYS]) + "\n"
