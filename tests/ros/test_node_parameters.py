"""Parameters: declared from the config dataclasses, described, and never wrong in silence."""

from __future__ import annotations

from dataclasses import fields

import pytest
from conftest import wait_for
from diagnostic_msgs.msg import DiagnosticArray

from sparseoccvla import config
from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.guard_node import GuardNode


def diagnosis(graph, messages: list[DiagnosticArray], text: str) -> str:
    def found() -> list[str]:
        return [s.message for d in messages for s in d.status if text in s.message]

    return wait_for(found, f"a diagnosis that says {text!r}")[-1]


def test_every_setting_is_a_parameter_with_text_and_range(graph):
    node = graph.add(GuardNode)
    graph.wait_active(node)
    for item in fields(config.GuardConfig):
        descriptor = node.describe_parameter(f"guard.{item.name}")
        assert item.metadata["doc"] in descriptor.description
        assert descriptor.read_only
        assert descriptor.floating_point_range[0].from_value == item.metadata["low"]
        assert node.get_parameter(f"guard.{item.name}").value == item.default


def test_what_is_set_reaches_the_logic(graph):
    node = graph.add(GuardNode, guard__braking_mps2=2.5)
    graph.wait_active(node)
    assert node.guard.config.braking_mps2 == 2.5


def test_a_whole_number_is_a_fine_value_of_a_real_parameter(graph):
    node = graph.add(GuardNode, guard__braking_mps2=3)
    graph.wait_active(node)
    assert node.guard.config.braking_mps2 == 3.0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"guard__breaking_mps2": 2.0}, "guard_node has no parameter guard.breaking_mps2; it has"),
        ({"guard__braking_mps2": 99.0}, "parameter guard.braking_mps2 of guard_node is 99.0, wanted float"),
        (
            {"guard__braking_mps2": "hard"},
            "parameter guard.braking_mps2 of guard_node is 'hard', wanted float",
        ),
    ],
)
def test_a_wrong_parameter_leaves_the_node_up_with_an_error(graph, parameters, said):
    messages: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
    node = graph.add(GuardNode, **parameters)
    assert said in diagnosis(graph, messages, "can't configure")
    assert graph.state(node) == "unconfigured"


def test_lists_can_be_given_empty_or_as_whole_numbers(graph):
    node = graph.add(EncoderNode, backend="fake", sync__stamp_offsets_s=[0, 1, 0, 0, 0, 0])
    graph.wait_active(node)
    assert node.sync.stamp_offsets_s == (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert node.sync.phases_s == ()


def test_a_missing_model_is_named_with_what_there_is(graph):
    messages: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
    node = graph.add(EncoderNode, backend="torch", model="no-such-model")
    assert "no-such-model" in diagnosis(graph, messages, "can't configure")
    assert graph.state(node) == "unconfigured"


def test_a_node_without_autostart_waits(graph):
    node = graph.add(GuardNode, autostart=False)
    assert graph.state(node) == "unconfigured"
