"""Tokens that are taken back before they expire, and the file that keeps them where no Redis does.

The file is written anew with each: to a new file beside it, synced and put in its place, so that a
crash leaves the old one or the new one and never half of either.
"""

import os
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from gateway.errors import BadRequest, ConfigError, Unavailable

MAX_REVOCATIONS = 100_000
"""That are in force at a time; each is about 300 bytes in every worker."""

MAX_ID_BYTES = 1024
"""Of the ``jti`` or user that is revoked."""

MAX_FILE_BYTES = MAX_REVOCATIONS * (6 * MAX_ID_BYTES + 100)
"""As JSON has the longest ids, all of them escaped."""

FORMAT = 1


class Kind(StrEnum):
    TOKEN = "token"
    """The token of this ``jti``."""
    USER = "user"
    """All that this user was given before."""


class Revocation(msgspec.Struct, frozen=True):
    """What no longer counts. Times are ms of the wall clock."""

    kind: Kind
    id: str
    at_ms: int
    until_ms: int | None = None
    """When it need not be remembered any more; None: never."""

    def is_over(self, now_ms: int) -> bool:
        return self.until_ms is not None and self.until_ms < now_ms


class _Document(msgspec.Struct):
    v: int
    revocations: list[Revocation]


def check(revocation: Revocation) -> Revocation:
    """Raises BadRequest for an id that cannot be kept."""
    try:
        size = len(revocation.id.encode())
    except UnicodeEncodeError:
        raise BadRequest("What is revoked contains lone surrogates.") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise BadRequest(
            f"What is revoked is the id of a token or a user of 1 to {MAX_ID_BYTES} bytes; this one"
            f" has {size}."
        )
    return revocation


def too_many() -> Unavailable:
    return Unavailable(
        f"{MAX_REVOCATIONS} revocations are in force, and no more are kept: let tokens expire"
        " sooner, or change the key that signs them.",
        reason="revocations",
        outcome="refused",
    )


class RevocationsFile:
    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read(self) -> Sequence[Revocation]:
        """A file that is not there yet is made, so that one that cannot be written is known before
        it is needed. Raises ConfigError for one that cannot be used."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return self._make()
        except OSError as error:
            raise self._refused(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE_BYTES:
            raise self._refused(f"is over {MAX_FILE_BYTES} bytes, so it is none of ours")
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refused(f"is not what a node has written: {error}") from error
        if document.v != FORMAT:
            raise self._refused(f"has format {document.v}, and this version reads {FORMAT}")
        if len(document.revocations) > MAX_REVOCATIONS:
            raise self._refused(f"has more than {MAX_REVOCATIONS} revocations")
        return document.revocations

    def _make(self) -> Sequence[Revocation]:
        try:
            self.write(())
        except OSError as error:
            raise ConfigError(
                f"revocations_file {self._path} cannot be written: {error.strerror}. The node makes"
                " the file, and writes it anew beside itself, in a folder that is there."
            ) from error
        return ()

    def write(self, revocations: Iterable[Revocation]) -> None:
        """Return when it is on the disk. Blocks. Raises OSError."""
        data = msgspec.json.encode(_Document(FORMAT, list(revocations)))
        beside = self._path.with_name(self._path.name + ".new")
        beside.unlink(missing_ok=True)  # what a crash has left
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"revocations_file {self._path} {why}. Without it revoked tokens would count again:"
            " mend it, or take it away if that is wanted."
        )
