"""What this worker knows to be revoked: the copy of the ledger's list that every request is held
against. What is over is taken out now and then, so that it holds twice what is in force at most."""

from collections.abc import Callable, Iterable

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation

FEW = 1024
"""Until there are so many, nothing is taken out."""


class Revoked:
    def __init__(self, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is the wall clock."""
        self._now_ms = now_ms
        self._known: dict[tuple[Kind, str], Revocation] = {}
        self._look_at = FEW

    def __len__(self) -> int:
        return len(self._known)

    def replace(self, known: Iterable[Revocation]) -> None:
        """From here on just these."""
        self._known = {(each.kind, each.id): each for each in known}

    def add(self, revocation: Revocation) -> None:
        self._known[revocation.kind, revocation.id] = revocation
        if len(self._known) > self._look_at:
            now = self._now_ms()
            self.replace([each for each in self._known.values() if not each.is_over(now)])
            self._look_at = max(FEW, 2 * len(self._known))

    def has(self, identity: Identity) -> bool:
        """Whether what ``identity`` was made of has been revoked. Nobody's keys are."""
        if identity.expires_ms is None:
            return False
        if identity.token_id is not None and (Kind.TOKEN, identity.token_id) in self._known:
            return True
        if identity.user is None:
            return False
        revocation = self._known.get((Kind.USER, identity.user))
        return revocation is not None and identity.issued_ms <= revocation.at_ms
