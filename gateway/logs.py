"""The log of this process: what is said too often, what nobody reads, and the thread that writes.

1. Whoever logs never waits. A record goes into a bounded queue, and one thread formats and writes
   it. Where whoever reads standard error stalls, lines are dropped and counted, and the next one
   that goes through says how many.
2. Each kind of line has a rate: by logger, sentence and level where it is ours, and by logger and
   level of any other. What is more is counted, and summed up once a second: a line that is not
   written costs a look at a number.
3. What goes into the queue are plain values, and the text of a traceback: frames and tasks must not
   be freed by another thread than theirs.
4. At the end of the process what is queued is still written, for FLUSH_SECONDS at most.
"""

import copy
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from gateway.log_lines import (
    MAX_TRACEBACK,
    MAX_VALUE,
    JsonFormatter,
    LogfmtFormatter,
    fields_of,
    is_ours,
    message_of,
)
from gateway.threads import without_signals

QUEUED_LINES = 4096
"""Records that wait to be written: with MAX_VALUE a few MiB, and forty seconds of one kind."""

BURST_SECONDS = 2.0
"""Of its rate that a kind of line may have at once."""

MAX_KINDS = 512
"""Kinds of lines that are told apart, a few times what our sources have; all others are one."""

SUMMARY_SECONDS = 1.0
"""Between two lines that sum up what was suppressed of one kind."""

FLUSH_SECONDS = 1.0
"""For what is queued at the end; whoever has not read it by then reads no more."""

STANDARD_ERROR = 2

ALLOWED = {"is_allowed": True}
"""``extra`` of a record for which `allows` was asked before it was made."""

_OTHER = ("gateway.logs", "lines of other kinds", logging.WARNING)
_OF_OTHERS = "lines of this logger"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Counters of this process."""

    dropped: int
    suppressed: int


class Kind:
    """One kind of line: a bucket that its rate fills."""

    __slots__ = ("at", "credit", "level", "logger", "sentence", "suppressed", "told")

    def __init__(self, logger: str, sentence: str, level: int, credit: float, now: float) -> None:
        self.logger = logger
        self.sentence = sentence
        self.level = level
        self.credit = credit
        self.at = now
        self.suppressed = self.told = 0


class Pace:
    """How many lines of each kind may be written."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``rate`` is in lines a second; 0: no limit."""
        self._rate = rate
        self._clock = clock
        self._kinds: dict[tuple[str, str, int], Kind] = {}

    def allows(self, logger: str, sentence: str, level: int) -> bool:
        """Whether one more line of that kind may be written; counted if not."""
        if not self._rate:
            return True
        now = self._clock()
        kind = self._kinds.get((logger, sentence, level)) or self._new(logger, sentence, level, now)
        kind.credit += (now - kind.at) * self._rate
        kind.at = now
        most = max(1.0, self._rate * BURST_SECONDS)
        if kind.credit > most:
            kind.credit = most
        if kind.credit < 1:
            kind.suppressed += 1
            return False
        kind.credit -= 1
        return True

    def _new(self, logger: str, sentence: str, level: int, now: float) -> Kind:
        key = (logger, sentence, level) if len(self._kinds) < MAX_KINDS else _OTHER
        most = max(1.0, self._rate * BURST_SECONDS)
        return self._kinds.setdefault(key, Kind(*key, most, now))

    @property
    def suppressed(self) -> int:
        return sum(kind.suppressed for kind in tuple(self._kinds.values()))

    def untold(self) -> Iterator[tuple[Kind, int]]:
        """Kinds of which lines were suppressed, and how many since this was asked last."""
        for kind in tuple(self._kinds.values()):
            count = kind.suppressed - kind.told
            if count:
                kind.told += count
                yield kind, count


class Writer:
    """A bounded queue of records, and the thread that writes them to a descriptor."""

    def __init__(
        self, descriptor: int, formatter: logging.Formatter, pace: Pace, most: int = QUEUED_LINES
    ) -> None:
        self._descriptor = descriptor
        self._formatter = formatter
        self._pace = pace
        self._most = most
        self._queue: SimpleQueue[logging.LogRecord | threading.Event] = SimpleQueue()
        self._refused = self._failed = 0  # each counted by one thread alone
        self._told_dropped = 0
        self._flushed = threading.Event()
        self._flushed.set()
        self._summed_up_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        with without_signals():
            self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were not written."""
        return self._refused + self._failed

    def put(self, record: logging.LogRecord) -> None:
        """Queue ``record``, or drop and count it where too many wait."""
        if self._queue.qsize() >= self._most:
            self._refused += 1
        else:
            self._queue.put(record)

    def flush(self, seconds: float) -> bool:
        """Whether all that was queued until now has been written, which may take ``seconds``.
        Where that was waited for in vain, it is not again until it has been."""
        if not self._flushed.is_set():
            return False
        self._flushed.clear()
        self._queue.put(self._flushed)
        return self._flushed.wait(seconds)

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=SUMMARY_SECONDS)
            except Empty:
                self._sum_up()
                continue
            if isinstance(item, threading.Event):
                self._tell_dropped()
                self._sum_up()
                item.set()
                continue
            self._tell_dropped()
            if not self._write(item):
                self._failed += 1
            if time.monotonic() - self._summed_up_at >= SUMMARY_SECONDS:
                self._sum_up()

    def _tell_dropped(self) -> None:
        count = self.dropped - self._told_dropped
        if count:
            told = {"dropped": count}
            sentence = "nobody has taken the log for too long, and lines were dropped"
            if self._write(_record(_log.name, logging.WARNING, sentence, told)):
                self._told_dropped += count

    def _sum_up(self) -> None:
        self._summed_up_at = time.monotonic()
        for kind, count in self._pace.untold():
            self._write(_record(kind.logger, kind.level, kind.sentence, {"more": count}))

    def _write(self, record: logging.LogRecord) -> bool:
        """Write one line, at once where it is short enough for a pipe; False where nobody can read
        it any more, or a disk is full. A descriptor that does not block is waited for."""
        try:
            left = f"{self._formatter.format(record)}\n".encode()
        except Exception:  # noqa: BLE001  # one that cannot be told must not end all others
            return False
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True


def _record(
    logger: str, level: int, sentence: str, fields: Mapping[str, object]
) -> logging.LogRecord:
    return logging.LogRecord(logger, level, "", 0, sentence, (fields,), None)


class QueueHandler(logging.Handler):
    """Where all records of the process go."""

    def __init__(self, writer: Writer, pace: Pace) -> None:
        super().__init__()
        self.writer = writer
        self.pace = pace

    def emit(self, record: logging.LogRecord) -> None:
        is_allowed = getattr(record, "is_allowed", False)
        sentence = str(record.msg) if is_ours(record.name) else _OF_OTHERS
        if is_allowed or self.pace.allows(record.name, sentence, record.levelno):
            self.writer.put(_plain(record))

    def flush(self) -> None:
        """As `logging.shutdown` calls it at the end of the process."""
        self.writer.flush(FLUSH_SECONDS)


def _plain(record: logging.LogRecord) -> logging.LogRecord:
    """The record with nothing in it but text and what `fields_of` takes, and of what is too long as
    much as shows that it is."""
    fields = fields_of(record)
    is_short = not any(isinstance(v, str) and len(v) > MAX_VALUE for v in fields.values())
    if not record.exc_info and type(record.msg) is str and (not record.args or fields) and is_short:
        return record
    plain = copy.copy(record)
    if plain.exc_info:
        text = logging.Formatter().formatException(plain.exc_info)
        plain.exc_text = text[-MAX_TRACEBACK - 1 :]
        plain.exc_info = None
    if fields:
        plain.args = {
            name: value[: MAX_VALUE + 1] if isinstance(value, str) else value
            for name, value in fields.items()
        }
    else:
        plain.msg, plain.args = message_of(plain)[: MAX_VALUE + 1], None
    return plain


_started: list[QueueHandler] = []
"""That of the process, once `start` has been called."""


def start(level: str, *, as_json: bool, rate: float, process: str = "") -> None:
    """Log to standard error from now on, at ``rate`` lines a second of each kind (0: no limit);
    ``process`` tells the lines of one of several apart."""
    pace = Pace(rate)
    formatter = JsonFormatter(process) if as_json else LogfmtFormatter(process)
    handler = QueueHandler(Writer(STANDARD_ERROR, formatter, pace), pace)
    handler.writer.start()
    logging.basicConfig(level=level.upper(), handlers=[handler])
    quieten()
    _started[:] = [handler]


def quieten() -> None:
    """Have others say no more than what is wrong: every URL that is fetched would be a line, and
    at the level of debugging every header, with the secrets of upstreams."""
    for chatty in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def allows(logger: str, sentence: str, level: int) -> bool:
    """Whether a line of that kind may be written, which is counted as one; for lines that would
    cost too much to make in vain. They are logged with ``extra=ALLOWED``."""
    return all(handler.pace.allows(logger, sentence, level) for handler in _started)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Have written what was logged until now, before an end that no handler sees."""
    for handler in _started:
        handler.writer.flush(seconds)


def statistics() -> LogStatistics:
    return LogStatistics(
        dropped=sum(handler.writer.dropped for handler in _started),
        suppressed=sum(handler.pace.suppressed for handler in _started),
    )
