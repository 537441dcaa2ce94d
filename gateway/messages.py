"""The messages between workers, as bytes: a request, and an answer to it. Pure.

1. ``v``, ``kind``, ``id`` and ``worker`` mean the same in the messages of every version.
2. A request is answered in its own version. Whoever does not know that answers in another one,
   which says by itself that nothing was understood and nothing done.
3. Whatever the bytes are, `decode` gives a message or None; what is in a message is looked at only
   where its command is known, and then anything that does not fit is an error of the gateway's own.
"""

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import msgspec

from gateway.errors import (
    BadRequest,
    ChannelEnded,
    ContentTooLarge,
    Forbidden,
    GatewayError,
    NotFound,
    Unavailable,
)

VERSION = 1

MAX_MESSAGE_BYTES = 1024 * 1024
"""Of an answer: it names all channels of a client, 5,000 of the longest."""

MAX_REQUEST_BYTES = 64 * 1024
"""What is asked fits into the head of an HTTP request, which has 16 KiB unless set otherwise."""

TAG = r"^[0-9a-f]{8}\Z"
"""A worker's tag."""

_BESIDE_BYTES = 256
"""More than an answer has beside what it tells."""

REQUEST, ANSWER = "request", "answer"

_OK = 200
_NOT_UNDERSTOOD = 501

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be."""

_Refusing = BadRequest | Forbidden | NotFound | ChannelEnded | ContentTooLarge | Unavailable

_REFUSALS: dict[int, type[_Refusing]] = {
    error.status: error
    for error in (BadRequest, Forbidden, NotFound, ChannelEnded, ContentTooLarge, Unavailable)
}
"""What a command is refused with; another status is a fault of the worker that answers."""

Asked = TypeVar("Asked", bound=msgspec.Struct)
Told = TypeVar("Told", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Command(Generic[Asked, Told]):
    """Something to be asked of a worker: by which name, in which shapes, for how long.

    A member may be added to a shape if it has a default; whoever does not know it skips it.
    """

    name: str
    asked: type[Asked]
    told: type[Told]
    seconds: float
    """How long whoever asks will wait."""


class Head(msgspec.Struct, kw_only=True):
    """What the messages of all versions have. ``worker`` is the tag of the one that sent it."""

    v: int = VERSION
    kind: str
    id: int
    worker: Annotated[str, msgspec.Meta(pattern=TAG)]


class Request(Head, kw_only=True):
    command: str
    milliseconds: int
    """How long its asker will wait."""
    asked: msgspec.Raw

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    def read(self, command: Command[Asked, Told]) -> Asked | None:
        """What is asked; None if it is not what the command asks."""
        try:
            return msgspec.msgpack.decode(self.asked, type=command.asked)
        except _UNREADABLE:
            return None


class Refusal(msgspec.Struct, omit_defaults=True):
    """What is read of a problem document: the members that one of ours has beside title and
    status. What else another worker says goes no further."""

    detail: str = ""
    reason: str | None = None
    outcome: str | None = None
    closed: int | None = None
    missing: int | None = None

    def members(self) -> dict[str, str | int]:
        """Those that it has, without ``detail``."""
        members = msgspec.structs.asdict(self)
        del members["detail"]
        return {name: value for name, value in members.items() if value is not None}


class Answer(Head, kw_only=True):
    status: int
    told: msgspec.Raw
    """For a refusal it is the problem document."""

    def read(self, command: Command[Asked, Told]) -> Told:
        """What is told. Raises the error with which the command was refused; Unavailable with the
        outcome "refused" if it was not understood, and "unknown" if the answer is not.
        """
        if self.status == _NOT_UNDERSTOOD:
            raise Unavailable(
                f"The worker {self.worker} is of another version and does not know this.",
                outcome="refused",
            )
        try:
            if self.status == _OK:
                return msgspec.msgpack.decode(self.told, type=command.told)
            problem = msgspec.msgpack.decode(self.told, type=Refusal)
        except _UNREADABLE:
            raise unknown(self.worker) from None
        refusal = _REFUSALS.get(self.status)
        if refusal is None:
            raise unknown(self.worker)
        raise refusal(problem.detail, **problem.members())


def request(worker: str, id: int, command: Command[Asked, Told], asked: Asked) -> bytes:
    """Raises ContentTooLarge for what no worker would take."""
    milliseconds = int(command.seconds * 1000)
    message = Request(
        kind=REQUEST,
        id=id,
        worker=worker,
        command=command.name,
        milliseconds=milliseconds,
        asked=_raw(asked),
    )
    encoded = msgspec.msgpack.encode(message)
    if len(encoded) > MAX_REQUEST_BYTES:
        raise ContentTooLarge("This is more than one worker can ask of another.")
    return encoded


def told(worker: str, id: int, value: msgspec.Struct) -> Answer:
    """The answer to a request that was carried out; if it is too large, that it is unknown."""
    encoded = msgspec.msgpack.encode(value)
    if len(encoded) > MAX_MESSAGE_BYTES - _BESIDE_BYTES:
        return refused(worker, id, unknown(worker))
    raw = msgspec.Raw(encoded)
    return Answer(kind=ANSWER, id=id, worker=worker, status=_OK, told=raw)


def refused(worker: str, id: int, error: GatewayError) -> Answer:
    problem = _raw(error.problem())
    return Answer(kind=ANSWER, id=id, worker=worker, status=error.status, told=problem)


def not_understood(worker: str, id: int) -> Answer:
    """The answer to what this version does not know; also what one of another version means."""
    return Answer(kind=ANSWER, id=id, worker=worker, status=_NOT_UNDERSTOOD, told=_raw(None))


def encode(answer: Answer) -> bytes:
    return msgspec.msgpack.encode(answer)


def decode(message: bytes) -> Head | None:
    """A Request or an Answer; a bare Head if it is of another version; None for anything else."""
    if len(message) > MAX_MESSAGE_BYTES:
        return None
    try:
        head = msgspec.msgpack.decode(message, type=Head)
        if head.kind not in _KINDS:
            return None
        if head.kind == REQUEST and len(message) > MAX_REQUEST_BYTES:
            return None
        if head.v != VERSION:
            return head
        return msgspec.msgpack.decode(message, type=_KINDS[head.kind])
    except _UNREADABLE:
        return None


_KINDS: dict[str, type[Request | Answer]] = {REQUEST: Request, ANSWER: Answer}


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def unknown(worker: str) -> Unavailable:
    """How it is told that a worker may or may not have done what it was asked."""
    return Unavailable(f"What the worker {worker} did cannot be known.", outcome="unknown")
