"""What this worker knows to be revoked: the copy of the ledger's list that every request is held
against."""

from collections.abc import Iterable

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation


class Revoked:
    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._users: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._users)

    def replace(self, known: Iterable[Revocation]) -> None:
        """From here on just these."""
        self._tokens, self._users = set(), {}
        for each in known:
            self.add(each)

    def add(self, revocation: Revocation) -> None:
        if revocation.kind is Kind.TOKEN:
            self._tokens.add(revocation.id)
        else:
            at_ms = max(revocation.at_ms, self._users.get(revocation.id, 0))
            self._users[revocation.id] = at_ms

    def has(self, identity: Identity) -> bool:
        """Whether what ``identity`` was made of has been revoked. Nobody's keys are."""
        if identity.expires_ms is None:
            return False
        if identity.token_id is not None and identity.token_id in self._tokens:
            return True
        at_ms = self._users.get(identity.user) if identity.user is not None else None
        return at_ms is not None and identity.issued_ms <= at_ms
