"""One thread, one slot: the newest job wins and what it displaces is counted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def be_nicer(niceness: int) -> None:
    """Let the present thread wait for others of the machine where both want the same core."""
    if niceness > 0:  # only root may take it back, so 0 must not try
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + niceness, 19))


class LatestWorker[Job]:
    """Runs `work(job)` in its own thread, never more than one job behind.

    Inference belongs here and not in a subscription callback: a callback that computes stops the
    executor from taking the next picture. `work` must handle its own errors. Where cores are short a
    worker with a niceness above 0 waits for those without.
    """

    def __init__(self, name: str, work: Callable[[Job], None], niceness: int = 0) -> None:
        self._work = work
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
            self.dropped += len(self._slot)
            self._slot = [job]
            self._condition.notify()

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
        be_nicer(self._niceness)
        while True:
            with self._condition:
                while not self._slot and not self._stopping:
                    self._condition.wait()
                if self._stopping:
                    return
                job = self._slot.pop()
            self._work(job)
            self.done += 1
