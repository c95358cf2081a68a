"""The messages built without ROS headers work wherever a stock build's would.

Each test goes through another part of the C tables of tools/bootstrap/rosidl_types.h: a wrong layout
there would garble, hang or crash here. With a colcon-made install the same tests run on that.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from threading import Event

import pytest
from conftest import Graph, wait_for
from rclpy.action import ActionClient, ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.service_introspection import ServiceIntrospectionState
from rclpy.task import Future
from sparseoccvla_msgs.action import AskScene
from sparseoccvla_msgs.msg import (
    CameraStatus,
    CandidateTrajectory,
    OccupancyForecast,
    OccupancyQueries,
    PlanProposal,
    SparseOccupancy,
    StackInfo,
    Tensor,
)
from type_description_interfaces.srv import GetTypeDescription

RECORD = Path(__file__).resolve().parents[1] / "contract" / "interface_hashes.json"


def proposal() -> PlanProposal:
    """Nested sequences, strings, a fixed number of everything."""
    message = PlanProposal(chosen=17, trained=True, speed=8.0, requires_stage_id="0123abcd")
    message.provenance.model_id = "größe"
    message.candidates = [
        CandidateTrajectory(mode=mode, score=mode / 32, x=array("f", [1, 2]), yaw=array("f", [0.5]))
        for mode in range(18)
    ]
    return message


def test_every_kind_of_field_survives_serialization():
    grid = SparseOccupancy(voxel_size=0.5, indices=array("B", range(9)))
    grid.shape = [200, 200, 16]  # a fixed array
    forecast = OccupancyForecast(horizons=array("f", [1, 2, 3]), occupancy=[grid, SparseOccupancy(), grid])
    info = StackInfo(cameras=["cam_front", "", "cam_back"], image_size=[128, 352])
    for message in (proposal(), forecast, info):
        assert deserialize_message(serialize_message(message), type(message)) == message


def test_a_paper_sized_set_of_queries_arrives_whole(graph: Graph):
    features = array("B", bytes(range(256)) * 2400)  # 600 queries x 256 x float32
    sent = OccupancyQueries(
        cameras=[CameraStatus(name="cam_front", state=CameraStatus.FRESH)],
        features=Tensor(name="features", dtype="float32", shape=array("I", [600, 256]), data=features),
    )
    got = graph.listen(OccupancyQueries, "queries")
    publisher = graph.listener.create_publisher(OccupancyQueries, "queries", 5)
    wait_for(publisher.get_subscription_count, "the subscription")
    publisher.publish(sent)
    wait_for(lambda: got, "the queries")
    assert got[0] == sent


def test_the_hash_on_the_wire_is_the_recorded_one(graph: Graph):
    graph.listener.create_publisher(PlanProposal, "proposal", 1)
    (info,) = wait_for(lambda: graph.listener.get_publishers_info_by_topic("proposal"), "the publisher")
    recorded = json.loads(RECORD.read_text())["sparseoccvla_msgs/msg/PlanProposal"]
    assert f"RIHS01_{bytes(info.topic_type_hash.value).hex()}" == recorded


def test_a_node_describes_its_types_to_whoever_asks(graph: Graph):
    graph.listener.create_publisher(PlanProposal, "proposal", 1)
    client = graph.listener.create_client(GetTypeDescription, "/listener/get_type_description")
    wait_for(client.service_is_ready, "the description service")
    name = "sparseoccvla_msgs/msg/PlanProposal"
    request = GetTypeDescription.Request(type_name=name, type_hash=json.loads(RECORD.read_text())[name])
    future = client.call_async(request)
    wait_for(future.done, "the description")
    answer = future.result()
    assert answer.successful, answer.failure_reason
    fields = [field.name for field in answer.type_description.type_description.fields]
    assert fields[:3] == ["header", "provenance", "requires_stage_id"]
    nested = [other.type_name for other in answer.type_description.referenced_type_descriptions]
    assert "sparseoccvla_msgs/msg/CandidateTrajectory" in nested


def test_a_service_call_can_be_watched(graph: Graph):
    """Service events are built by generated code from a struct that rcl fills in."""
    kind = AskScene.Impl.SendGoalService
    watched = QoSProfile(depth=10)
    node = graph.listener
    service = node.create_service(kind, "watched", lambda request, response: response)
    client = node.create_client(kind, "watched")
    for end in (service, client):
        end.configure_introspection(node.get_clock(), watched, ServiceIntrospectionState.CONTENTS)
    events = graph.listen(kind.Event, "watched/_service_event")
    wait_for(client.service_is_ready, "the service")
    wait_for(lambda: node.count_publishers("watched/_service_event") == 2, "the event publishers")
    future = client.call_async(kind.Request(goal=AskScene.Goal(question="what is ahead?")))
    wait_for(future.done, "the answer")
    wait_for(lambda: len(events) == 4, "request sent and received, response sent and received")
    questions = [event.request[0].goal.question for event in events if event.request]
    assert questions == ["what is ahead?", "what is ahead?"]
    assert {event.info.event_type for event in events} == {0, 1, 2, 3}
    assert len({event.info.sequence_number for event in events}) == 1
    assert all(event.info.stamp.sec > 0 for event in events)


class Scene:
    """An action server that answers word by word, and a client for it."""

    def __init__(self, graph: Graph) -> None:
        self.node, self.group = graph.listener, ReentrantCallbackGroup()
        self.cancel = Event()
        self.server = ActionServer(
            self.node,
            AskScene,
            "ask",
            self.answer,
            cancel_callback=self.on_cancel,
            callback_group=self.group,
        )
        self.client = ActionClient(self.node, AskScene, "ask", callback_group=self.group)
        self.partials: list[tuple[int, str]] = []

    def on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        self.cancel.set()
        return CancelResponse.ACCEPT

    async def answer(self, goal: ServerGoalHandle) -> AskScene.Result:
        words = goal.request.question.split()
        for number, word in enumerate(words):
            goal.publish_feedback(AskScene.Feedback(sequence=number, partial=word))
        if goal.request.max_tokens == 0:
            goal.succeed()
            return AskScene.Result(answer=" ".join(words), finish_reason="stop", stamp=goal.request.stamp)
        wait = Future(executor=self.node.executor)
        timer = self.node.create_timer(
            0.01, lambda: self.cancel.is_set() and not wait.done() and wait.set_result(None)
        )
        await wait
        timer.cancel()
        goal.canceled()
        return AskScene.Result(finish_reason="canceled")

    def ask(self, question: str, **fields: int):
        wait_for(self.client.server_is_ready, "the action server")
        goal = AskScene.Goal(question=question, **fields)
        goal.stamp.sec = 1234567890
        future = self.client.send_goal_async(goal, feedback_callback=self.on_feedback)
        wait_for(future.done, "the goal to be accepted")
        return future.result()

    def on_feedback(self, message) -> None:
        self.partials.append((message.feedback.sequence, message.feedback.partial))


def test_an_action_gives_feedback_and_a_result(graph: Graph):
    scene = Scene(graph)
    handle = scene.ask("is the läne free")
    assert handle.accepted
    future = handle.get_result_async()
    wait_for(future.done, "the result")
    result = future.result().result
    assert (result.answer, result.finish_reason) == ("is the läne free", "stop")
    assert result.stamp.sec == 1234567890
    wait_for(lambda: len(scene.partials) == 4, "all feedback")
    assert scene.partials == [(0, "is"), (1, "the"), (2, "läne"), (3, "free")]


def test_an_action_can_be_canceled(graph: Graph):
    handle = Scene(graph).ask("count", max_tokens=1000)
    canceling = handle.cancel_goal_async()
    wait_for(canceling.done, "the cancel request")
    assert len(canceling.result().goals_canceling) == 1
    future = handle.get_result_async()
    wait_for(future.done, "the result")
    assert future.result().result.finish_reason == "canceled"


def test_a_wrong_value_is_refused_in_python_when_fields_are_checked():
    with pytest.raises(AssertionError, match="'speed' field must be of type 'float'"):
        PlanProposal(speed="fast", check_fields=True)
