"""Encoder, reasoner and planner in one process: `full_stack.launch.py composed:=true`.

Outside everything is as with a process for each: nodes, parameters, topics, stamps. Inside, queries and
tokens are handed over as they are (`hand_off`), and no such message from outside is heard. One executor
runs the callbacks of all: while a node loads its network the others wait, while it computes they do not.
torch has one number of threads for a process: `threads` of the node that was configured last holds for all.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial

from rclpy.utilities import remove_ros_args

from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.hand_off import Encoded, HandOff, Reasoned
from sparseoccvla_ros.planner_node import PlannerNode
from sparseoccvla_ros.reasoner_node import ReasonerNode
from sparseoccvla_ros.stage_node import StageNode, spin_all


def composed_nodes(with_reasoner: bool = True) -> list[Callable[..., StageNode]]:
    """Constructors of the nodes, joined by hand-offs; without a reasoner, tokens may come from outside."""
    queries: HandOff[Encoded] = HandOff()
    if not with_reasoner:
        return [partial(EncoderNode, queries_to=queries), partial(PlannerNode, queries_from=queries)]
    tokens: HandOff[Reasoned] = HandOff()
    return [
        partial(EncoderNode, queries_to=queries),
        partial(PlannerNode, queries_from=queries, tokens_from=tokens),
        partial(ReasonerNode, queries_from=queries, tokens_to=tokens),
    ]


def main() -> int:
    parser = ArgumentParser(description="Encoder, reasoner and planner in one process.")
    parser.add_argument("--no-reasoner", action="store_true", help="only encoder and planner")
    arguments = parser.parse_args(remove_ros_args(sys.argv)[1:])
    return spin_all(composed_nodes(not arguments.no_reasoner), sys.argv)


if __name__ == "__main__":
    sys.exit(main())
