"""Queries to reasoning tokens, forecasts and words: the wiring of `sparseoccvla.stages.reasoner`.

The prefill that driving waits for and the answers people wait for run in two threads; answers never
delay a token by more than the cores they share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from queue import Full, Queue
from threading import Thread
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.task import Future
from sparseoccvla_msgs.action import AskScene
from sparseoccvla_msgs.msg import (
    OccupancyForecast,
    OccupancyQueries,
    ReasoningText,
    ReasoningTokens,
    StackInfo,
)

from sparseoccvla.config import ModelSource, ReasonerNodeConfig
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.load import load_reasoner
from sparseoccvla.stages.reasoner import ReasonerStage
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.hand_off import Encoded, HandOff, Reasoned
from sparseoccvla_ros.health import Level, steady_clock
from sparseoccvla_ros.stage_node import StageNode, spin
from sparseoccvla_ros.worker import LatestWorker, be_nicer

_WAITING_QUESTIONS = 4
_ANSWER_NICENESS = 10


@dataclass(frozen=True)
class _Question:
    """`say` gets each piece and whether it is the last; False from it stops the answer."""

    text: str
    t0_ns: int
    max_tokens: int
    say: Callable[[int, str, str], bool]  # t0_ns, piece, finish reason ("" while it goes on)
    fail: Callable[[str], None]


class ReasonerNode(StageNode):
    """Reasons about the newest queries and answers questions off the driving path."""

    def __init__(
        self,
        queries_from: HandOff[Encoded] | None = None,
        tokens_to: HandOff[Reasoned] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("reasoner_node", **kwargs)
        self._queries_from = queries_from
        self._tokens_to = tokens_to
        self.stage: ReasonerStage | None = None
        self.worker: LatestWorker[Encoded] | None = None
        self._sequence = 0

    def declare(self) -> None:
        self.source = params.declare(self, ModelSource)
        self.settings = params.declare(self, ReasonerNodeConfig, "reasoner")

    def configure(self) -> None:
        self.stage = ReasonerStage(load_reasoner(self.source), self.settings.max_rate_hz)
        publisher = self.create_lifecycle_publisher
        self._tokens = publisher(ReasoningTokens, "reasoning/tokens", qos.RESULT)
        self._forecast = publisher(OccupancyForecast, "occupancy/forecast", qos.RESULT)
        self._text = publisher(ReasoningText, "reasoning/text", qos.STREAM)
        self._info = publisher(StackInfo, "info", qos.LATCHED)

    def activate(self) -> None:
        assert self.stage is not None
        self.worker = self.make_worker("reasoner", self._reason)
        self.worker.start()
        self._questions: Queue[_Question | None] = Queue(_WAITING_QUESTIONS)
        self._answerer = Thread(target=self._answer_all, name="answers", daemon=True)
        self._answerer.start()
        self.receive(
            self._queries_from,
            OccupancyQueries,
            "occupancy/queries",
            convert.encoded,
            self._on_queries,
            qos.RESULT,
        )
        self._ask = ActionServer(
            self,
            AskScene,
            "reasoning/ask",
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            feedback_pub_qos_profile=qos.STREAM,
        )
        self._standing_timer = None
        if self.settings.question:
            self._standing_timer = self.create_timer(
                self.settings.question_period_s, self._ask_standing, clock=steady_clock()
            )
        self._info.publish(convert.info_msg(self.stage.reasoner.info, self.now_ns()))

    def deactivate(self) -> None:
        if self.worker is None:
            return
        if self._standing_timer is not None:
            self.destroy_timer(self._standing_timer)
        self._ask.destroy()
        self.worker.stop()
        self.worker = None
        self._questions.put(None)
        self._answerer.join(5.0)

    def cleanup(self) -> None:
        self.stage = None

    def facts(self) -> Mapping[str, object]:
        if self.stage is None or self.worker is None:
            return {}
        info = self.stage.reasoner.info
        return {
            "backend": info.backend,
            "model_id": info.model_id,
            "trained": info.trained,
            "prefills": self.worker.done,
            "queries displaced by newer": self.worker.dropped,
            "queries refused": self.stage.refused,
            "questions waiting": self._questions.qsize(),
        }

    # Driving path --------------------------------------------------------------------------------

    def _on_queries(self, encoded: Encoded) -> None:
        assert self.stage is not None
        assert self.worker is not None
        if self.stage.offer(encoded.queries, encoded.stage_id):
            self.worker.submit(encoded)

    def _reason(self, job: Encoded) -> None:
        assert self.stage is not None
        try:
            result = self.stage.process(job.queries)
        except InputError as error:
            self.health.raise_fault("reason", Level.ERROR, f"queries of {job.queries.t0_ns} ns: {error}")
            return
        self.health.clear("reason")
        info = self.stage.reasoner.info
        self._sequence += 1
        origin = convert.provenance(info, self._sequence, time.monotonic() - job.received_s)
        if self._tokens_to is not None:
            self._tokens_to.give(Reasoned(result.reasoning, info.model_id))
        self._tokens.publish(
            convert.reasoning_msg(
                result.reasoning, origin, info.requires_stage_id, job.sequence, result.prompt
            )
        )
        if self.worker is not None and self.worker.done == 0:
            self._ask_standing()  # first words with the first frame, not a period later
        if self._forecast.get_subscription_count() > 0:
            self._forecast.publish(convert.forecast_msg(self.stage.forecast(result), origin))

    # Words ---------------------------------------------------------------------------------------

    def _ask_standing(self) -> None:
        """The question the node asks itself, when nobody else asks."""
        assert self.stage is not None
        if not self.settings.question or self.stage.newest is None or not self._questions.empty():
            return
        if self.stage.reasoner.info.extras.get("answers") == "off":
            return
        question = self.settings.question
        pieces: list[str] = []

        def say(t0_ns: int, piece: str, finish: str) -> bool:
            pieces.append(piece)
            self._publish_text(t0_ns, question, "".join(pieces), bool(finish))
            return self.worker is not None

        def fail(reason: str) -> None:
            self.health.raise_fault("words", Level.WARN, reason)

        self._questions.put_nowait(_Question(question, 0, self.settings.max_tokens, say, fail))

    def _publish_text(self, t0_ns: int, question: str, text: str, finished: bool) -> None:
        assert self.stage is not None
        info = self.stage.reasoner.info
        self._text.publish(
            ReasoningText(
                header=convert.header(t0_ns),
                provenance=convert.provenance(info, self._sequence, 0.0),
                question=question,
                text=text,
                finished=finished,
                trained=info.trained,
            )
        )

    def _on_goal(self, goal: AskScene.Goal) -> GoalResponse:
        if self._questions.full():
            self.get_logger().warning(
                f"question refused: {_WAITING_QUESTIONS} are waiting already; ask again later"
            )
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    async def _execute(self, goal: ServerGoalHandle) -> AskScene.Result:
        """Wait for the answering thread without holding the executor."""
        assert self.stage is not None
        done: Future = Future(executor=self.executor)
        result = AskScene.Result(trained=self.stage.reasoner.info.trained)
        request = goal.request
        numbers = count()

        def say(t0_ns: int, piece: str, finish: str) -> bool:
            result.stamp = convert.time_msg(t0_ns)
            result.answer += piece
            if piece:
                goal.publish_feedback(AskScene.Feedback(partial=piece, sequence=next(numbers)))
            if goal.is_cancel_requested and not finish:
                finish = "canceled"
            if finish:
                result.finish_reason = finish
                done.set_result(finish)
            return not finish

        def fail(reason: str) -> None:
            result.finish_reason = reason
            done.set_result("failed")

        tokens = request.max_tokens or self.settings.max_tokens
        question = _Question(request.question, convert.time_ns(request.stamp), tokens, say, fail)
        try:
            self._questions.put_nowait(question)
        except Full:
            fail("too many questions are waiting; ask again later")
        match await done:
            case "failed":
                goal.abort()
            case "canceled":
                goal.canceled()
            case _:
                goal.succeed()
        return result

    def _answer_all(self) -> None:
        # Words wait for driving where both want the same core.
        be_nicer(_ANSWER_NICENESS)
        while (question := self._questions.get()) is not None:
            try:
                self._answer(question)
            except InputError as error:
                question.fail(str(error))

    def _answer(self, question: _Question) -> None:
        assert self.stage is not None
        t0_ns, pieces = self.stage.answer(question.text, question.max_tokens, question.t0_ns)
        said = 0
        for said, piece in enumerate(pieces, start=1):  # noqa: B007 (counted after the loop)
            if not question.say(t0_ns, piece, ""):
                return
        question.say(t0_ns, "", "length" if said >= question.max_tokens else "stop")


def main() -> int:
    return spin(ReasonerNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
