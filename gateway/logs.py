"""Log lines: one record, one line, whatever is in it.

1. A line break or a control character in a message is written as an escape, so what a stranger may
   choose (a path, a name) neither begins a line nor drives a terminal.
2. A traceback has as many lines as it needs, each of them indented: no log line begins like that.
"""

import logging

_INDENT = "    "


class OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802
        return _indented(super().formatException(ei))  # type: ignore[arg-type]  # as typeshed has it

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def escaped(text: str) -> str:
    """``text`` with each character that does not print as Python writes it in a literal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _indented(text: str) -> str:
    return "\n".join(_INDENT + escaped(line) for line in text.split("\n"))
