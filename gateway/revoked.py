"""What this worker knows to be revoked: its copy of the ledger's list, which every request is held
against.

1. Only time takes something away again. What the ledger has read is added to what was heard: while
   it was read, something may have come that it has missed, and Redis may have lost some of it.
2. What is over is forgotten by and by, so that what is kept is twice what is in force at the most.
"""

from collections.abc import Callable

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation

MIN_KEPT = 1000
"""Revocations among which none is looked for that is over."""


class Revoked:
    def __init__(self, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is the wall clock."""
        self._now_ms = now_ms
        self._known: dict[tuple[Kind, str], Revocation] = {}
        self._most = MIN_KEPT

    def __len__(self) -> int:
        return len(self._known)

    def add(self, *revocations: Revocation) -> None:
        for each in revocations:
            known = self._known.get((each.kind, each.id))
            if known is None or known.at_ms <= each.at_ms:
                self._known[each.kind, each.id] = each
            if len(self._known) > self._most:
                self._forget()

    def has(self, identity: Identity) -> bool:
        """Whether what ``identity`` was made of has been revoked. Nobody's keys are."""
        if identity.expires_ms is None:
            return False
        if identity.token_id is not None and (Kind.TOKEN, identity.token_id) in self._known:
            return True
        if identity.user is None:
            return False
        of_user = self._known.get((Kind.USER, identity.user))
        return of_user is not None and identity.issued_ms <= of_user.at_ms

    def _forget(self) -> None:
        now = self._now_ms()
        self._known = {key: each for key, each in self._known.items() if not each.is_over(now)}
        self._most = max(MIN_KEPT, 2 * len(self._known))
