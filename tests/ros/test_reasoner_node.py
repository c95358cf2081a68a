"""The reasoner node: tokens beside every frame it can keep up with, words off the driving path."""

from __future__ import annotations

import time

import pytest
from action_msgs.msg import GoalStatus
from conftest import Graph, wait_for
from rclpy.action import ActionClient
from sparseoccvla_msgs.action import AskScene
from sparseoccvla_msgs.msg import OccupancyForecast, OccupancyQueries, ReasoningText, ReasoningTokens

from sparseoccvla.contracts import CAMERA_NAMES, CameraSet, CameraSlot, CameraState, StageInfo
from sparseoccvla.contracts import OccupancyQueries as Queries
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.reasoner_node import ReasonerNode

SECOND = 1_000_000_000
ENCODER = StageInfo("encoder", "0" * 16, "fake-encoder", "", False, "", "fake", "")


class Bench:
    """A reasoner node with the fake backend, and queries made by hand."""

    def __init__(self, graph: Graph, question: str = "", **parameters) -> None:
        self.graph = graph
        self.tokens: list[ReasoningTokens] = graph.listen(ReasoningTokens, "reasoning/tokens")
        self.text: list[ReasoningText] = graph.listen(ReasoningText, "reasoning/text", qos.STREAM)
        self.node = graph.add(ReasonerNode, backend="fake", reasoner__question=question, **parameters)
        graph.wait_active(self.node)
        self.queries = graph.listener.create_publisher(OccupancyQueries, "occupancy/queries", qos.RESULT)
        wait_for(lambda: self.queries.get_subscription_count(), "queries to be matched")
        self.client = ActionClient(
            graph.listener, AskScene, "reasoning/ask", feedback_sub_qos_profile=qos.STREAM
        )
        assert self.client.wait_for_server(10)
        self.partials: list[AskScene.Feedback] = []

    def send(self, t0_ns: int, stage_id: str = "fake-encoder") -> None:
        slots = tuple(CameraSlot(name, CameraState.FRESH, t0_ns) for name in CAMERA_NAMES)
        origin = convert.provenance(ENCODER, 5, 0.0)
        origin.stage_id = stage_id
        camera_set = CameraSet(t0_ns, CAMERA_NAMES[0], slots)
        self.queries.publish(convert.queries_msg(Queries.fake(t0_ns), origin, camera_set, (), False))

    def see(self, t0_ns: int) -> None:
        self.send(t0_ns)
        wait_for(lambda: self.node.stage.newest, "queries to arrive")

    def ask(self, question: str, **goal):
        """The goal handle of a question."""
        request = AskScene.Goal(question=question, **goal)
        sent = self.client.send_goal_async(request, lambda m: self.partials.append(m.feedback))
        wait_for(sent.done, "the goal to be answered")
        return sent.result()

    def result(self, handle):
        done = handle.get_result_async()
        wait_for(done.done, "the result")
        return done.result()


def test_a_token_carries_the_time_of_its_cameras(graph):
    bench = Bench(graph)
    bench.send(t0_ns := time.time_ns() - 3 * SECOND)
    token = wait_for(lambda: bench.tokens, "a token")[0]
    assert convert.time_ns(token.header.stamp) == t0_ns
    assert token.queries_sequence == 5
    assert token.requires_stage_id == "fake-encoder"
    assert len(convert.reasoning(token).token) == 256


def test_queries_beyond_its_rate_are_skipped_not_queued(graph):
    bench = Bench(graph, reasoner__max_rate_hz=2.0)
    start = time.time_ns()
    for i in range(8):
        bench.send(start + i * SECOND // 8)
        time.sleep(0.03)
    time.sleep(0.3)
    assert len(bench.tokens) == 2


def test_the_forecast_has_three_horizons_in_the_frame_of_t0(graph):
    bench = Bench(graph)
    forecasts = graph.listen(OccupancyForecast, "occupancy/forecast")
    wait_for(lambda: bench.node._forecast.get_subscription_count(), "the forecast to be matched")
    bench.send(t0_ns := time.time_ns())
    message = wait_for(lambda: forecasts, "a forecast")[0]
    forecast = convert.forecast(message)
    assert forecast.horizons_s == (1.0, 2.0, 3.0)
    assert {step.t0_ns for step in forecast.occupancy} == {t0_ns}
    assert {step.header.frame_id for step in message.occupancy} == {"base_link"}


def test_queries_of_another_model_are_refused(graph):
    bench = Bench(graph)
    bench.send(time.time_ns(), stage_id="somebody-else")
    wait_for(lambda: bench.node.stage.refused == 1, "the refusal")
    assert bench.tokens == []


def test_an_answer_streams_and_the_result_holds_all_of_it(graph):
    bench = Bench(graph)
    bench.see(t0_ns := time.time_ns())
    result = bench.result(bench.ask("What is ahead?"))
    assert result.status == GoalStatus.STATUS_SUCCEEDED
    assert result.result.answer == "There is no language model behind this answer to: What is ahead? "
    assert convert.time_ns(result.result.stamp) == t0_ns
    assert result.result.finish_reason == "stop"
    assert not result.result.trained
    wait_for(lambda: len(bench.partials) == 12, "every partial")
    assert [partial.sequence for partial in bench.partials] == list(range(12))
    assert "".join(partial.partial for partial in bench.partials) == result.result.answer


def test_a_long_answer_is_cut_and_says_so(graph):
    bench = Bench(graph)
    bench.see(time.time_ns())
    result = bench.result(bench.ask("What is ahead?", max_tokens=3)).result
    assert result.answer == "There is no "
    assert result.finish_reason == "length"


def test_an_answer_can_be_canceled(graph):
    bench = Bench(graph)

    def slowly(queries, question, max_tokens):
        for i in range(1000):
            time.sleep(0.02)
            yield f"{i} "

    bench.node.stage.reasoner.answer = slowly
    bench.see(time.time_ns())
    handle = bench.ask("Tell me everything")
    wait_for(lambda: len(bench.partials) > 3, "the answer to begin")
    canceled = handle.cancel_goal_async()
    wait_for(canceled.done, "the cancel to be answered")
    result = bench.result(handle)
    assert result.status == GoalStatus.STATUS_CANCELED
    assert result.result.finish_reason == "canceled"
    assert result.result.answer.startswith("0 1 2 ")


@pytest.mark.parametrize(
    ("question", "stamp_ns", "reason"),
    [
        ("  ", 0, "the question is empty"),
        ("What?", 12345, "only the newest queries are kept"),
    ],
)
def test_a_question_that_can_not_be_answered_says_why(graph, question, stamp_ns, reason):
    bench = Bench(graph)
    bench.see(time.time_ns())
    result = bench.result(bench.ask(question, stamp=convert.time_msg(stamp_ns)))
    assert result.status == GoalStatus.STATUS_ABORTED
    assert reason in result.result.finish_reason


def test_a_question_before_anything_was_seen_says_so(graph):
    bench = Bench(graph)
    result = bench.result(bench.ask("What is ahead?"))
    assert result.status == GoalStatus.STATUS_ABORTED
    assert "no camera set has been encoded yet" in result.result.finish_reason


def test_tokens_go_on_while_an_answer_is_given(graph):
    bench = Bench(graph, reasoner__max_rate_hz=20.0)

    def slowly(queries, question, max_tokens):
        for i in range(50):
            time.sleep(0.02)
            yield f"{i} "

    bench.node.stage.reasoner.answer = slowly
    bench.see(start := time.time_ns())
    handle = bench.ask("Tell me everything")
    for i in range(1, 6):
        bench.send(start + i * SECOND // 10)
        time.sleep(0.1)
    assert len(bench.tokens) == 6
    assert bench.result(handle).result.answer.endswith("49 ")


def test_the_standing_question_is_answered_with_the_first_frame(graph):
    bench = Bench(graph, question="What is happening?", reasoner__question_period_s=60.0)
    bench.send(t0_ns := time.time_ns())
    last = wait_for(lambda: [message for message in bench.text if message.finished], "the words")[0]
    assert convert.time_ns(last.header.stamp) == t0_ns
    assert last.question == "What is happening?"
    assert last.text.startswith("There is no language model behind this answer")
    assert not last.trained
