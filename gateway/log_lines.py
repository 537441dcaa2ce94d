"""What a line of the log looks like: a record as logfmt, or as JSON.

1. A line has ``ts``, ``level``, ``process`` where there are several, ``logger``, ``msg``, and then
   the fields of the record: its arguments where these are a mapping, from loggers of ours.
2. One record, one line. What a stranger may choose (a path, a name) is quoted, and what does not
   print is an escape there: it neither begins a line, nor drives a terminal, nor forges a field.
3. A traceback is a field in JSON. In logfmt it follows in as many lines as it needs, each of them
   indented: no line of the log begins like that.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

MAX_VALUE = 1024
"""Characters of a value that are written. A usual line is then far below the 4,096 bytes of
PIPE_BUF (pipe(7)): what is longer may be torn by the line of another worker."""

MAX_TRACEBACK = 16_000
"""Characters of a traceback that are written, the last ones, which say what failed: Docker cuts
lines at 16 KiB."""

OURS = "gateway"

_INDENT = "    "
_CUT = "..."

_BARE = re.compile(r"[A-Za-z0-9_.:/@~%+,;*()\[\]-]+", re.ASCII)
"""A value that logfmt has without quotes."""


class LogfmtFormatter(logging.Formatter):
    def __init__(self, process: str = "") -> None:
        """``process`` tells the lines of one of several apart."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Without the traceback that another formatter may have left in the record."""
        line = " ".join(f"{name}={_logfmt(value)}" for name, value in pairs(record, self._process))
        return line + "".join(f"\n{_INDENT}{_escaped(row)}" for row in traceback_of(record))


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str = "") -> None:
        """``process`` tells the lines of one of several apart."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = ", ".join(f"{_quoted(name)}: {_json(value)}" for name, value in self._pairs(record))
        return f"{{{line}}}"

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        yield from pairs(record, self._process)
        if rows := traceback_of(record):
            yield "traceback", "\n".join(rows)


def pairs(record: logging.LogRecord, process: str) -> Iterator[tuple[str, object]]:
    """Names and values of a line, in order; what is None is not said."""
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    yield "ts", moment.removesuffix("+00:00") + "Z"
    yield "level", record.levelname.lower()
    if process:
        yield "process", process
    yield "logger", record.name
    yield "msg", _shortened(message_of(record))
    for name, value in fields_of(record).items():
        if value is not None:
            yield name, _shortened(value) if isinstance(value, str) else value


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """What a record of ours says beside its sentence. Of others nothing is known of the names."""
    return record.args if is_ours(record.name) and isinstance(record.args, Mapping) else {}


def is_ours(logger: str) -> bool:
    return logger == OURS or logger.startswith(f"{OURS}.")


def traceback_of(record: logging.LogRecord) -> list[str]:
    """The lines of a traceback and of a stack, if the record has any."""
    parts = []
    if record.exc_info:
        parts.append(logging.Formatter().formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    text = "\n".join(parts)
    if len(text) > MAX_TRACEBACK:
        text = _CUT + text[-MAX_TRACEBACK:]
    return text.split("\n") if text else []


def message_of(record: logging.LogRecord) -> str:
    """Its sentence, with what stands in it; without, where the two do not fit."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # of what others put there: whoever logs must not fail for it
        return record.msg if isinstance(record.msg, str) else object.__repr__(record.msg)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + _CUT


def _logfmt(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool | int | float):
        return _json(value)
    text = str(value)
    return text if _BARE.fullmatch(text) else _quoted(text)


def _json(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():  # seconds
            return f"{value:.3f}"
        case int():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(_json, value))}]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """A string of JSON (RFC 8259, section 7), whose other readers find nothing to obey either."""
    return _escaped(json.dumps(text, ensure_ascii=False))


def _escaped(text: str) -> str:
    """``text`` with an escape of JSON for each character that does not print."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
