"""What every node of the stack has: a lifecycle it starts itself, health, clean shutdown."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from sparseoccvla.config import WatchConfig
from sparseoccvla.errors import InputError
from sparseoccvla_ros import params
from sparseoccvla_ros.hand_off import HandOff
from sparseoccvla_ros.health import Health, InputWatch, Level, steady_clock
from sparseoccvla_ros.worker import LatestWorker

_SWITCH_S = 0.0005
DEMO_HINT = "Nothing to connect? Try `ros2 launch sparseoccvla full_stack.launch.py bag:=demo`"


class StageNode(LifecycleNode):
    """A lifecycle node that configures and activates itself, so that a respawned one comes back.

    A subclass fills in four hooks: `configure` (read parameters, load, make publishers), `activate`
    (subscribe, start workers), `deactivate` (stop workers) and `facts` (numbers for diagnostics).
    An error in a hook leaves the node up, unconfigured, with diagnostics ERROR.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.watch = params.declare(self, WatchConfig, "watch")
        autostart = self.declare_parameter("autostart", True).value
        self.health = Health(self, self.watch, self.facts)
        self.inputs: InputWatch | None = None
        self._inputs_of: list[Subscription] = []
        self._taken_from: list[HandOff[Any]] = []
        self._declared = False
        self._bad_parameters: InputError | None = None
        self._active = False
        self.exit_code = 0  # of the process, should this node end it
        if autostart:
            # One shot, after the executor runs: a constructor that loads a network answers nobody.
            self._start_timer = self.create_timer(0.0, self._start, clock=steady_clock())

    # Hooks ---------------------------------------------------------------------------------------

    def declare(self) -> None:
        """Declare parameters; called once, before the first `configure`."""

    def configure(self) -> None:
        """Load and create publishers."""

    def activate(self) -> None:
        """Subscribe and start workers."""

    def deactivate(self) -> None:
        """Stop workers; what was made with `subscribe` and `receive` is undone afterwards."""

    def cleanup(self) -> None:
        """Let go of what `configure` made."""

    def failed_to_start(self) -> None:
        """What to do when `configure` failed; stay up and say so, so that it can be tried again."""

    def facts(self) -> Mapping[str, object]:
        """Numbers for diagnostics."""
        return {}

    # For subclasses ------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        *,
        awaited: bool = True,
    ) -> None:
        """Subscribe until deactivation; an `InputError` of the callback is a fault, not the node's end."""
        if awaited and self.inputs is not None:
            self.inputs.expect(topic, message_type, qos)
        guarded = self._guarded(topic, callback, awaited)
        self._inputs_of.append(self.create_subscription(message_type, topic, guarded, qos))

    def receive[Message, Item](
        self,
        hand_off: HandOff[Item] | None,
        message_type: type[Message],
        topic: str,
        read: Callable[[Message], Item],
        use: Callable[[Item], None],
        qos: QoSProfile,
    ) -> None:
        """Use what a node of this process hands over; without a `hand_off`, what is read from `topic`."""
        if hand_off is None:
            self.subscribe(message_type, topic, lambda message: use(read(message)), qos)
            return
        if self.inputs is not None:
            self.inputs.expect(topic, message_type, qos)
        guarded = self._guarded(topic, use)

        def take(item: Item) -> None:
            try:
                if self._active:  # else it was given just before
                    guarded(item)
            except Exception:  # noqa: BLE001 (the executor does not survive a task that raises)
                self.health.raise_fault(topic, Level.ERROR, f"{topic}: {traceback.format_exc()}")

        hand_off.connect(self, take)
        self._taken_from.append(hand_off)

    def make_worker[Job](
        self, name: str, work: Callable[[Job], None], niceness: int = 0
    ) -> LatestWorker[Job]:
        """A worker whose failure is a fault of the node, not its silent end; the next job is tried again."""

        def guarded(job: Job) -> None:
            try:
                work(job)
            except Exception:  # noqa: BLE001 (a thread that dies takes the node's voice with it)
                self.health.raise_fault(name, Level.ERROR, f"{name} failed: {traceback.format_exc()}")
            else:
                self.health.clear(name)

        return LatestWorker(name, guarded, niceness)

    def _guarded(
        self, topic: str, callback: Callable[[Any], None], awaited: bool = True
    ) -> Callable[[Any], None]:
        def guarded(message: Any) -> None:
            if awaited and self.inputs is not None:
                self.inputs.seen(topic)
            try:
                callback(message)
            except InputError as error:
                self.health.raise_fault(topic, Level.ERROR, f"{topic}: {error}")

        return guarded

    # Lifecycle -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._start_timer.cancel()
        if self.trigger_configure() is TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        else:
            self.failed_to_start()

    def _run_hook(self, what: str, hook: Callable[[], None]) -> TransitionCallbackReturn:
        start = time.monotonic()
        try:
            hook()
        except InputError as error:
            self.health.raise_fault(what, Level.ERROR, f"can't {what}: {error}")
            self.health.publish()
            return TransitionCallbackReturn.FAILURE
        except Exception:  # noqa: BLE001 (rclpy would swallow it without a word)
            self.health.raise_fault(what, Level.ERROR, f"can't {what}: {traceback.format_exc()}")
            self.health.publish()
            return TransitionCallbackReturn.FAILURE
        self.health.clear(what)
        self.get_logger().info(f"{what} took {time.monotonic() - start:.2f} s")
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._run_hook("configure", self._configure)

    def _configure(self) -> None:
        if not self._declared:
            self._declared = True
            try:
                self.declare()
                params.refuse_unknown(self)
            except InputError as error:
                self._bad_parameters = error
        if self._bad_parameters is not None:
            raise self._bad_parameters  # they are read-only: another try finds the same
        self.configure()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)  # publishers first: a callback may publish at once
        self.inputs = InputWatch(self, self.watch, DEMO_HINT)
        self._active = True
        return self._run_hook("activate", self.activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        outcome = self._run_hook("deactivate", self._deactivate)
        super().on_deactivate(state)
        return outcome

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._run_hook("clean up", self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._run_hook("shut down", self._cleanup)

    def _deactivate(self) -> None:
        if not self._active:
            return
        self._active = False
        self.deactivate()
        while self._inputs_of:
            self.destroy_subscription(self._inputs_of.pop())
        while self._taken_from:
            self._taken_from.pop().disconnect(self)
        if self.inputs is not None:
            self.inputs.stop()
            self.inputs = None

    def _cleanup(self) -> None:
        self._deactivate()
        self.cleanup()

    def close(self) -> None:
        """Release everything; rclpy runs no transition at exit, so this is for the `finally` of `spin`."""
        self._cleanup()
        self.destroy_node()


def spin(make_node: Callable[[], StageNode], args: list[str] | None = None) -> int:
    """Run one node until it is told to stop. The body of every executable."""
    return spin_all([make_node], args)


def spin_all(make_nodes: list[Callable[[], StageNode]], args: list[str] | None = None) -> int:
    """Run nodes in one executor until SIGINT or SIGTERM; returns the process's exit code."""
    # The events executor wakes in microseconds where the wait-set one needs most of a millisecond.
    from rclpy.experimental import EventsExecutor

    # A worker that holds the interpreter makes callbacks and other workers wait this long; 5 ms by default.
    sys.setswitchinterval(_SWITCH_S)
    rclpy.init(args=args)
    executor = EventsExecutor()
    nodes: list[StageNode] = []
    try:
        for make in make_nodes:
            nodes.append(make())
            executor.add_node(nodes[-1])
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except InputError as error:
        rclpy.logging.get_logger("sparseoccvla").error(str(error))
        return 2
    finally:
        for node in nodes:
            node.close()
        rclpy.try_shutdown()
    return max((node.exit_code for node in nodes), default=0)
