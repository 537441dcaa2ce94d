"""What this worker knows to be revoked: the copy of the ledger's list that every request is held
against.

Nothing that is revoked ever counts again: what is read is added to what has been told, since that
may have come while the list was being read, and be missing there. What is over is forgotten.
"""

from collections.abc import Iterable

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation

SLACK_MS = 60_000
"""That a revocation is remembered beyond its time, which is told in whole seconds, by somebody
else's clock."""


class Revoked:
    def __init__(self) -> None:
        self._tokens: dict[str, Revocation] = {}
        self._users: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._tokens) + len(self._users)

    def learn(self, known: Iterable[Revocation], now_ms: int) -> None:
        """These as well; and forget what is over."""
        for each in known:
            self.add(each)
        for of in (self._tokens, self._users):
            for id in [id for id, each in of.items() if each.is_over(now_ms - SLACK_MS)]:
                del of[id]

    def add(self, revocation: Revocation) -> None:
        of = self._tokens if revocation.kind is Kind.TOKEN else self._users
        before = of.get(revocation.id)
        if before is None or before.at_ms <= revocation.at_ms:
            of[revocation.id] = revocation

    def has(self, identity: Identity) -> bool:
        """Whether what ``identity`` was made of has been revoked. Nobody's keys are."""
        if identity.expires_ms is None:
            return False
        if identity.token_id is not None and identity.token_id in self._tokens:
            return True
        user = self._users.get(identity.user) if identity.user is not None else None
        return user is not None and identity.issued_ms <= user.at_ms
