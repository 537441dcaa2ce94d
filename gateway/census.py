"""What all workers of a node tell of themselves, added up for whichever of them is asked.

1. A round asks every worker once, waits ASK_SECONDS at most, and answers all questions that came
   before it began. One question a worker and one request to it are open at a time.
2. Who has not answered an earlier request is not waited for again: it counts with what it told
   last, but only what it had counted by then.
3. The counters of workers that have ended are kept.
4. Who answers has a say in whether the node takes clients, and who has left has none.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import trio

from gateway import logs
from gateway.control_socket import Answer, Ask
from gateway.logs import LogStatistics
from gateway.merged import accepting_no_more, counted, merge
from gateway.node import NodeStatistics
from gateway.worker_process import Worker

ASK_SECONDS = 1.0
"""For a worker's answer, which takes it a millisecond once it has a turn."""


class Census:
    def __init__(self) -> None:
        self.workers: list[Worker] = []
        """All processes there are, leaving ones too."""
        self.restarts = 0
        self.draining = False
        self._kept: list[NodeStatistics] = []
        self._askers: set[Worker] = set()
        self._asked = trio.Event()
        self._started = time.monotonic()

    def add(self, worker: Worker) -> None:
        self.workers.append(worker)

    def remove(self, worker: Worker) -> None:
        """Keep the counters of a worker that has ended."""
        self.workers.remove(worker)
        self._askers.discard(worker)
        if worker.last is not None:
            self._kept = [merge([*self._kept, counted(worker.last)])]

    @property
    def serving(self) -> list[Worker]:
        """Those that take clients."""
        return [worker for worker in self.workers if worker.ready and not worker.left]

    @property
    def answering(self) -> list[Worker]:
        """Those of them that have answered when they were asked last."""
        return [worker for worker in self.serving if not worker.silent]

    def question(self, worker: Worker) -> None:
        """Answer ``worker`` after the next round."""
        self._askers.add(worker)
        self._asked.set()

    def ask(self) -> None:
        """Have a round, for nobody."""
        self._asked.set()

    def missed(self) -> list[Worker]:
        """Who has not answered, which is counted; to be called once a round, when it is over."""
        missing = []
        for worker in self.workers:
            if worker.ready and not worker.silent:
                worker.missed = 0
            else:
                worker.missed += 1
                missing.append(worker)
        return missing

    async def run(self) -> None:
        """Answer questions, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            askers, self._askers = self._askers, set()
            await self._round()
            parts = list(self._parts())
            answer = Answer(self._whole(parts) if parts else None)
            for worker in askers:
                worker.tell(answer)

    async def _round(self) -> None:
        asked = [worker for worker in self.workers if worker.ready and not worker.silent]
        for worker in asked:
            worker.silent = True
            worker.answered = trio.Event()
            worker.tell(Ask())
        with trio.move_on_after(ASK_SECONDS):
            for worker in asked:
                await worker.answered.wait()

    def _parts(self) -> Iterator[NodeStatistics]:
        yield from self._kept
        for worker in self.workers:
            if worker.last is not None:
                now = counted(worker.last) if worker.silent else worker.last
                yield accepting_no_more(now) if worker.left else now

    def _whole(self, parts: list[NodeStatistics]) -> NodeStatistics:
        whole = merge(parts)
        answering, own = self.answering, logs.statistics()
        return replace(
            whole,
            uptime_seconds=time.monotonic() - self._started,
            draining=self.draining,
            full=whole.full and bool(answering),
            cut_off=whole.cut_off and bool(answering),
            workers=len(answering),
            worker_restarts=self.restarts,
            log=LogStatistics(
                whole.log.dropped + own.dropped, whole.log.suppressed + own.suppressed
            ),
        )
