"""One thread, one slot: the newest job wins and what it displaces is counted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class LatestWorker[Job]:
    """Runs `work(job)` in its own thread, never more than one job behind.

    Inference belongs here and not in a subscription callback: a callback that computes stops the
    executor from taking the next picture. `work` must handle its own errors. Where cores are short a
    worker with a niceness above 0 waits for those without.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Job], None],
        dropped: Callable[[Job], None] | None = None,
        niceness: int = 0,
    ) -> None:
        self._work = work
        self._on_dropped = dropped
        self._niceness = niceness
        self._condition = threading.Condition()
        self._slot: list[Job] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.done = 0
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the slot; a job still waiting there is dropped."""
        with self._condition:
            old = self._slot.pop() if self._slot else None
            self._slot.append(job)
            if old is not None:
                self.dropped += 1
            self._condition.notify()
        if old is not None and self._on_dropped is not None:
            self._on_dropped(old)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Finish the running job, drop the waiting one; False if the job did not end in time."""
        with self._condition:
            self._stopping = True
            self._slot.clear()
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while True:
            with self._condition:
                while not self._slot and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    return
                job = self._slot.pop()
            self._work(job)
            self.done += 1
