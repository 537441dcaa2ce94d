"""The log of a process: what a line says, what is said too often, and who does not read it."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process import child

from gateway import logs
from gateway.log_lines import MAX_TRACEBACK, MAX_VALUE, JsonFormatter, LogfmtFormatter

PATIENCE = 10.0


class Clock:
    """Whose time is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A handler with its writer, and the pipe that it writes to."""

    def __init__(self, rate: float = 0, most: int = logs.QUEUED_LINES, clock: Clock | None = None):
        self.reading, self.writing = os.pipe()
        self.pace = logs.Pace(rate, clock or Clock())
        self.writer = logs.Writer(self.writing, LogfmtFormatter("worker-1"), self.pace, most)
        self.handler = logs.QueueHandler(self.writer, self.pace)
        self.writer.start()

    def write(
        self, sentence: str, *args: object, logger: str = "gateway.x", **more: object
    ) -> None:
        record = logging.LogRecord(logger, logging.INFO, "", 0, sentence, args, None)
        vars(record).update(more)
        self.handler.handle(record)

    def lines(self) -> list[str]:
        """Everything that has been written, once it has been."""
        assert self.writer.flush(PATIENCE)
        return os.read(self.reading, 1 << 20).decode().splitlines()


@pytest.fixture
def made() -> Iterator[Callable[..., Log]]:
    all_logs: list[Log] = []

    def make(*args: object, **more: object) -> Log:
        all_logs.append(Log(*args, **more))  # type: ignore[arg-type]
        return all_logs[-1]

    yield make
    for log in all_logs:
        os.close(log.reading)


def record(sentence: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("gateway.streams", level, "", 0, sentence, args, None)
    made.created = 1_795_197_408.8434
    return made


# --- what a line says -----------------------------------------------------------------------------

SAID = {"client": "a.b-c", "seconds": 1.23456, "delivered": 7, "user": None, "names": ("a", "b")}


def test_a_line_of_logfmt() -> None:
    line = LogfmtFormatter("worker-2").format(record("stream closed", SAID))
    assert line == (
        "ts=2026-11-20T17:56:48.843Z level=info process=worker-2 logger=gateway.streams "
        'msg="stream closed" client=a.b-c seconds=1.235 delivered=7 names=a,b'
    )


def test_a_line_of_json() -> None:
    line = JsonFormatter().format(record("stream closed", SAID, level=logging.WARNING))
    assert json.loads(line) == {
        "ts": "2026-11-20T17:56:48.843Z",
        "level": "warning",
        "logger": "gateway.streams",
        "msg": "stream closed",
        "client": "a.b-c",
        "seconds": 1.235,
        "delivered": 7,
        "names": ["a", "b"],
    }


def test_a_sentence_may_hold_fields_and_has_them_beside_it_too() -> None:
    line = LogfmtFormatter().format(record("worker %(worker)d is ready", {"worker": 3}))
    assert line.endswith(' msg="worker 3 is ready" worker=3')


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("é", '"é"'),
    ],
)
def test_a_value_is_quoted_where_it_has_to_be(value: str, written: str) -> None:
    assert LogfmtFormatter().format(record("x", {"v": value})).endswith(f" v={written}")


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_values_and_tracebacks_have_a_bound(formatter: logging.Formatter) -> None:
    long = record("x" * 2 * MAX_VALUE, {"v": "q" * 2 * MAX_VALUE})
    long.exc_text = "z" * 2 * MAX_TRACEBACK
    line = formatter.format(long)
    assert (line.count("x"), line.count("z")) == (MAX_VALUE, MAX_TRACEBACK)
    assert line.count("q") == MAX_VALUE


def test_a_sentence_that_does_not_fit_its_fields_is_still_a_line() -> None:
    assert LogfmtFormatter().format(record("%(x)d of", {"y": 1})).endswith(' msg="%(x)d of" y=1')


# --- whoever does not read it ---------------------------------------------------------------------


def test_nobody_who_logs_waits_for_a_reader_and_what_is_dropped_is_counted_and_told(
    made: Callable[..., Log],
) -> None:
    """The pipe is full, and so is the queue behind it; then somebody reads again."""
    log = made(most=50)
    wide = "x" * MAX_VALUE
    for _ in range(2000):  # far more than a pipe and the queue hold; this would hang
        log.write(wide)
    dropped = log.writer.dropped
    assert 2000 - 50 - 64 * 1024 // len(wide) - 1 <= dropped <= 2000 - 50
    read = b""
    while read.count(wide.encode()) < 2000 - dropped:
        read += os.read(log.reading, 1 << 16)
    log.write("again")
    lines = [*read.decode().splitlines(), *log.lines()]
    assert lines[-1].endswith("msg=again")
    told = [line for line in lines[:-1] if not line.endswith(f"msg={wide}")]
    assert all("level=warning" in line and "logger=gateway.logs" in line for line in told)
    assert sum(int(line.rpartition("dropped=")[2]) for line in told) == dropped
    assert log.writer.dropped == dropped


def test_where_nobody_can_read_lines_are_dropped(made: Callable[..., Log]) -> None:
    log = made()
    os.close(log.reading)
    log.write("x")
    assert log.writer.flush(PATIENCE)
    assert log.writer.flush(PATIENCE)
    assert log.writer.dropped == 1
    log.reading, _ = os.pipe()


def test_what_is_dropped_is_told_once_somebody_can_read_again(made: Callable[..., Log]) -> None:
    """As where a disk was full for a while."""
    log = made()
    with Path("/dev/full").open("wb", buffering=0) as full:
        pipe = os.dup(log.writing)
        os.dup2(full.fileno(), log.writing)
        log.write("lost")
        log.write("lost")
        assert log.writer.flush(PATIENCE)
        os.dup2(pipe, log.writing)
        os.close(pipe)
    log.write("again")
    told, again = log.lines()
    assert told.endswith('lines were dropped" dropped=2')
    assert again.endswith("msg=again")
    assert log.writer.dropped == 2


class Untellable:
    def __str__(self) -> str:
        raise RuntimeError


def test_what_cannot_be_told_fails_nobody_who_logs_and_ends_no_other_line(
    made: Callable[..., Log],
) -> None:
    log = made()
    log.write("of %s", Untellable(), logger="hypercorn.error")
    log.write("of ours", {"value": Untellable()})
    log.write("again")
    other, told, again = log.lines()
    assert other.endswith('msg="of %s"')
    assert told.endswith("dropped=1")
    assert again.endswith("msg=again")


def test_a_descriptor_that_does_not_block_is_waited_for(made: Callable[..., Log]) -> None:
    log = made()
    os.set_blocking(log.writing, False)
    for _ in range(200):
        log.write("x" * MAX_VALUE)
    read = b""
    while read.count(b"\n") < 200:
        read += os.read(log.reading, 1 << 16)
    assert {len(line) for line in read.splitlines()} == {len(read) // 200 - 1}


def test_the_thread_holds_no_traceback_and_takes_no_signal(made: Callable[..., Log]) -> None:
    log = made()
    queued: list[logging.LogRecord] = []
    log.writer.put = queued.append  # type: ignore[assignment, method-assign]
    try:
        raise ValueError("told")
    except ValueError:
        log.write("failed", exc_info=sys.exc_info())
    log.write("of %s", object(), logger="hypercorn.error")
    [failed, other] = queued
    assert failed.exc_info is None
    assert failed.exc_text is not None
    assert failed.exc_text.endswith("ValueError: told")
    assert other.args is None
    [thread] = [t for t in threading.enumerate() if t is log.writer._thread]
    told = Path(f"/proc/self/task/{thread.native_id}/status").read_text("utf-8")
    mask = int(told.partition("SigBlk:")[2].split()[0], 16)
    assert all(mask >> number - 1 & 1 for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))


def test_what_waits_holds_no_more_than_is_written(made: Callable[..., Log]) -> None:
    log = made()
    queued: list[logging.LogRecord] = []
    log.writer.put = queued.append  # type: ignore[assignment, method-assign]
    long = "x" * 100_000
    log.write("refused", {"path": long, "status": 503, "why": None})
    log.write("of %s", long, logger="hypercorn.error")
    try:
        raise ValueError(long)
    except ValueError:
        log.write("failed", {"path": long}, exc_info=sys.exc_info())
    held = [(each.msg, each.args, each.exc_text) for each in queued]
    assert sum(repr(each).count("x") for each in held) < 3 * (MAX_VALUE + 2) + MAX_TRACEBACK + 2
    refused, other, failed = map(LogfmtFormatter().format, queued)
    assert refused.endswith(f"path={'x' * MAX_VALUE}... status=503")
    assert other.endswith(f'msg="of {"x" * (MAX_VALUE - 3)}..."')
    assert failed.endswith("x" * 1000)


# --- what is said too often -----------------------------------------------------------------------


def test_a_kind_of_line_has_a_rate_and_the_rest_is_counted_and_summed_up(
    made: Callable[..., Log],
) -> None:
    clock = Clock()
    log = made(rate=10, clock=clock)
    for number in range(100):
        log.write("stream %(n)d", {"n": number})
    log.write("another kind")
    *some, other, more = log.lines()
    assert [line.rpartition("=")[2] for line in some] == [str(n) for n in range(20)]
    assert other.endswith('msg="another kind"')
    assert more.endswith('logger=gateway.x msg="stream %(n)d" more=80')
    assert log.pace.suppressed == 80
    clock.now += 1.0
    for number in range(100):
        log.write("stream %(n)d", {"n": number})
    *some, more = log.lines()
    assert len(some) == 10
    assert more.endswith("more=90")
    assert log.pace.suppressed == 170


def test_without_a_rate_everything_is_written(made: Callable[..., Log]) -> None:
    log = made(rate=0)
    for _ in range(500):
        log.write("x")
    assert len(log.lines()) == 500


def test_all_lines_of_a_logger_that_is_not_ours_are_one_kind(made: Callable[..., Log]) -> None:
    log = made(rate=1)
    for number in range(10):
        log.write(f"a sentence of its own: {number}", logger="hypercorn.error")
    assert len(log.lines()) == 3
    assert log.pace.suppressed == 8


def test_the_kinds_are_bounded() -> None:
    pace = logs.Pace(1, Clock())
    for number in range(logs.MAX_KINDS):
        assert pace.allows("gateway", f"{number}", logging.INFO)
    later = [pace.allows("gateway", f"{n} more", logging.INFO) for n in range(100)]
    assert later == [True, True] + [False] * 98
    assert len(pace._kinds) == logs.MAX_KINDS + 1
    [(kind, count)] = pace.untold()
    assert (kind.logger, kind.sentence, count) == ("gateway.logs", "lines of other kinds", 98)
    assert list(pace.untold()) == []


def test_a_line_is_asked_for_before_it_is_made_and_counts_once(made: Callable[..., Log]) -> None:
    log = made(rate=1)
    written = 0
    for _ in range(10):
        if log.pace.allows("gateway.x", "opened", logging.INFO):
            log.write("opened", is_allowed=True)
            written += 1
    assert written == 2
    assert len(log.lines()) == 3
    assert log.pace.suppressed == 8


# --- the process ----------------------------------------------------------------------------------

PROGRAM = """
import logging, os, sys
from gateway import logs
logs.start("info", as_json=False, rate=0, process="p")
for number in range(500):
    logging.getLogger("gateway").info("line", {"n": number})
logging.getLogger("gateway").debug("not this")
if "at once" in sys.argv:
    logs.flush()
    os._exit(3)
"""


@pytest.mark.parametrize("end", ["at once", "in order"])
async def test_what_was_logged_before_the_end_is_written(end: str) -> None:
    async with child(sys.executable, "-c", PROGRAM, end) as ended:
        assert await ended.wait() == (3 if end == "at once" else 0)
    lines = ended.output.splitlines()
    assert [line.rpartition("n=")[2] for line in lines] == [str(n) for n in range(500)]


FAILING = """
import logging, socket
from gateway import logs, worker
async def fails(*_):
    logs.start("info", as_json=False, rate=0)
    for number in range(500):
        logging.getLogger("gateway").info("line", {"n": number})
    raise RuntimeError("the end")
worker._run = fails
worker.run(*(sock.detach() for sock in socket.socketpair()), None)
"""


async def test_the_traceback_of_a_worker_stands_behind_its_lines() -> None:
    async with child(sys.executable, "-c", FAILING) as ended:
        assert await ended.wait() == 1
    lines = ended.output.splitlines()
    assert [line.rpartition("n=")[2] for line in lines[:500]] == [str(n) for n in range(500)]
    assert lines[-1] == "RuntimeError: the end"


STALLED = """
import logging, os, time
from gateway import logs
reading, writing = os.pipe()
os.dup2(writing, 2)
logs.start("info", as_json=False, rate=0)
logs.FLUSH_SECONDS = 0.1
for number in range(logs.QUEUED_LINES * 2):
    logging.getLogger("gateway").info("x" * 100)
assert logs.statistics().dropped > 0
begun = time.monotonic()
logging.shutdown()
assert 0.1 <= time.monotonic() - begun < 5
begun = time.monotonic()
logs.flush(60)
assert time.monotonic() - begun < 5, "it was waited for once"
print("shut down")
"""


async def test_at_the_end_nobody_waits_for_a_reader_for_long() -> None:
    async with child(sys.executable, "-c", STALLED) as ended:
        assert await ended.wait() == 0
    assert ended.output == "shut down\n"
