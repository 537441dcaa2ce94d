"""How the processes of locust come to one verdict: over locust's own messages, or within one.

The end of a run is held up until it is judged: when locust is about to stop its users, or to quit,
the process that rules (the master, or the only one) asks all that had users two questions, one
after the other: first, to stop publishing and for their ledgers; then, with what all ledgers say,
for what their subscribers miss. Each answer is waited for, within bounds; who gives none, or has
died, is named in the verdict, which is then not right.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import RLock
from locust.env import Environment
from locust.runners import STATE_INIT, STATE_MISSING, MasterRunner, WorkerRunner

from stress.account import Final
from stress.book import TICK, Book
from stress.tally import Tally
from stress.verdict import EXIT_WRONG, Ledgers, Verdict, judge

ASK, ANSWER = "gateway-ask", "gateway-answer"
LEDGERS, REPORT = "ledgers", "report"

ANSWER_SECONDS = 10.0
"""For an answer, beyond the patience that subscribers and publishers are given."""

ASK_AGAIN_SECONDS = 1.0
"""A worker that has just joined is not all ears yet: locust connects it before the locustfile is
told that there is a worker."""

logger = logging.getLogger("gateway")


class Settlement:
    """Of one process, for all runs that it takes part in, one after the other."""

    def __init__(self, environment: Environment) -> None:
        self.book: Book | None = None
        """None where users do not run here, or not yet."""
        self.verdict: Verdict | None = None
        """On the last run; None while one is under way."""
        self.is_settling = False
        self._environment = environment
        self._options: Any = environment.parsed_options
        self._runner: Any = environment.runner
        self._run = ""
        self._processes: set[str] = set()
        self._counts: dict[str, dict[str, int]] = {}
        self._question = ""
        self._answers: dict[str, Any] = {}
        self._told: dict[tuple[str, str], Any] = {}
        """What this process has answered in this run, or None while it finds that out."""
        self._lock = RLock()
        self._reported = Event()
        self._reported.set()
        events = environment.events
        events.test_start.add_listener(self._begin)
        events.quitting.add_listener(self._quit)
        if isinstance(self._runner, WorkerRunner):
            self._runner.register_message(ASK, self._answer, concurrent=True)
            events.report_to_master.add_listener(self._tell_counts)
            if self._runner.worker_state != STATE_INIT:  # it has joined a run before it got here
                self._begin()
            return
        events.test_stopping.add_listener(self.settle)
        if isinstance(self._runner, MasterRunner):
            self._runner.register_message(ANSWER, self._take_answer)
            events.worker_report.add_listener(self._take_counts)

    @property
    def _patience(self) -> float:
        return float(self._options.settle)

    def _begin(self, **_: object) -> None:
        """A run starts: its name goes to the workers with all other options."""
        self.verdict = None
        if isinstance(self._runner, WorkerRunner):
            run = self._options.run_id
            self._told = {key: answer for key, answer in self._told.items() if key[0] == run}
            self._reported.clear()
            self.book = Book(run, self._runner.worker_index)
            self.book.publishing = not self._told  # it may have joined a run that ends already
            return
        self._run = self._options.run_id = secrets.token_hex(4)
        self._counts.clear()
        if isinstance(self._runner, MasterRunner):
            self._processes = set(self._runner.clients)
        else:
            self.book = Book(self._run, 0)

    # -- what is known meanwhile

    def tally(self) -> Tally:
        """The counts of all processes so far; those of workers are up to three seconds old."""
        if self.verdict is not None:
            return self.verdict.tally
        if self.book is not None:
            return self.book.tally
        sum_of_all = Tally()
        for counts in self._counts.values():
            sum_of_all.add(counts)
        return sum_of_all

    def _tell_counts(self, data: dict[str, Any], **_: object) -> None:
        if self.book is not None:
            data["gateway"] = [self.book.run, self.book.tally.counts()]

    def _take_counts(self, client_id: str, data: dict[str, Any], **_: object) -> None:
        run, counts = data.get("gateway", ("", {}))
        if run and run == self._run:
            self._processes.add(client_id)
            self._counts[client_id] = counts

    # -- the end, where it is ruled

    def settle(self, **_: object) -> None:
        """Judge the run that is under way, if there is one. Whoever else calls this meanwhile waits
        for it."""
        with self._lock:
            if not self._run:
                return
            self.is_settling = True
            try:
                self.verdict = self._judge()
            finally:
                self._run = ""
                self.is_settling = False
            self._tell(self.verdict)

    def _judge(self) -> Verdict:
        packed = self._ask(LEDGERS, None)
        ledgers = Ledgers(each for answer in packed.values() for each in answer)
        reports = self._ask(REPORT, ledgers.finals())
        silent = self._processes - (packed.keys() & reports.keys())
        return judge(ledgers, filter(None, reports.values()), sorted(silent))

    def _ask(self, question: str, finals: list[Final] | None) -> dict[str, Any]:
        """The answers by process, as far as they come; of a worker without users they are empty."""
        runner = self._runner
        if not isinstance(runner, MasterRunner):
            assert self.book is not None
            return {"local": _answer_of(self.book, question, finals or [], self._patience)}
        self._question, self._answers = question, {}
        there = {name for name, node in runner.clients.items() if node.state != STATE_MISSING}
        self._processes |= there
        asked = {"run": self._run, "question": question, "finals": finals or []}
        until = time.monotonic() + self._patience + ANSWER_SECONDS
        while (waiting := there - self._answers.keys()) and time.monotonic() < until:
            for name in waiting:
                runner.send_message(ASK, asked | {"patience": self._patience}, name)
            with gevent.Timeout(ASK_AGAIN_SECONDS, False):
                while not there <= self._answers.keys():
                    gevent.sleep(TICK)
        return self._answers

    def _take_answer(self, environment: Environment, msg: Any) -> None:
        told = msg.data
        if told["run"] == self._run and told["question"] == self._question:
            self._answers[msg.node_id] = told["answer"]

    def _tell(self, verdict: Verdict) -> None:
        """To the log, to locust's failures, and to whoever sees the exit code."""
        found = verdict.defects
        log: Callable[..., None] = logger.error if found else logger.info
        log("verdict: %s %s", "wrong" if found else "right", verdict.summary())
        for defect in found:
            logger.error("verdict: %s", defect)
        for name, count in (("lost", verdict.lost), ("unjudged", verdict.unjudged)):
            if count:
                self._environment.events.request.fire(
                    request_type="VERDICT",
                    name=name,
                    response_time=0,
                    response_length=0,
                    exception=Wrong(f"{count} {name}"),
                    context={},
                )
        if found:
            self._environment.process_exit_code = EXIT_WRONG

    def _quit(self, **_: object) -> None:
        """locust is interrupted or terminated: judge before that. A worker, which an interrupt may
        reach as soon as its master, waits until it was asked."""
        if isinstance(self._runner, WorkerRunner):
            self._reported.wait(2 * (self._patience + ANSWER_SECONDS))
        else:
            self.settle()

    # -- the end, where users run

    def _answer(self, environment: Environment, msg: Any) -> None:
        """To be asked again changes nothing."""
        asked = msg.data
        key = (asked["run"], asked["question"])
        if key not in self._told:
            self._told[key] = None
            if self.book is not None and self.book.run == asked["run"]:
                finals = [Final(*each) for each in asked["finals"]]
                self._told[key] = _answer_of(
                    self.book, asked["question"], finals, asked["patience"]
                )
            else:
                self._told[key] = []
        if (answer := self._told[key]) is None:
            return  # it is being found out
        told = {"run": asked["run"], "question": asked["question"], "answer": answer}
        self._runner.send_message(ANSWER, told)
        if asked["question"] == REPORT:
            self._reported.set()


class Wrong(Exception):
    """What the verdict found, among locust's failures."""


def _answer_of(book: Book, question: str, finals: list[Final], patience: float) -> Any:
    if question == LEDGERS:
        return book.stop_publishing(patience)
    return book.settle(finals, patience)
