"""Log lines: one record, one line, whatever is in it.

1. A line break or a control character in a message is written as an escape, so what a stranger may
   choose (a path, a name) neither begins a line nor drives a terminal.
2. A traceback has as many lines as it needs, each of them indented: no log line begins like that.
"""

import logging

_INDENT = "    "


class OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Without the traceback that another formatter may have left in the record."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        text = escaped(self.formatMessage(record))
        if record.exc_info:
            text += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            text += _indented(self.formatStack(record.stack_info))
        return text


def escaped(text: str) -> str:
    """``text`` with each character that does not print as Python writes it in a literal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _indented(text: str) -> str:
    return "".join(f"\n{_INDENT}{escaped(line)}" for line in text.split("\n"))
