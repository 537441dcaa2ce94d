"""What a worker remembers of revocations: enough, and not for ever."""

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation
from gateway.revoked import FEW, Revoked


def of(user: str = "u", token_id: str | None = None, issued_ms: int = 0) -> Identity:
    return Identity(user=user, token_id=token_id, issued_ms=issued_ms, expires_ms=10**15)


def test_a_token_is_known_by_its_id_and_a_users_by_when_they_were_issued() -> None:
    revoked = Revoked(lambda: 0)
    revoked.add(Revocation(Kind.TOKEN, "1", 0))
    revoked.add(Revocation(Kind.USER, "v", 1000))
    assert revoked.has(of(token_id="1"))
    assert not revoked.has(of(token_id="v"))
    assert not revoked.has(of())
    assert [revoked.has(of("v", issued_ms=at)) for at in (0, 1000, 1001)] == [True, True, False]
    assert not revoked.has(of("1"))


def test_what_cannot_be_revoked_is_not() -> None:
    """API keys and whoever has no token have no end that could be brought forward."""
    revoked = Revoked(lambda: 0)
    revoked.add(Revocation(Kind.USER, "u", 1000))
    assert not revoked.has(Identity(user="u"))


def test_the_list_of_the_ledger_replaces_what_was_known() -> None:
    revoked = Revoked(lambda: 0)
    revoked.add(Revocation(Kind.TOKEN, "1", 0))
    revoked.replace([Revocation(Kind.TOKEN, "2", 0)])
    assert not revoked.has(of(token_id="1"))
    assert revoked.has(of(token_id="2"))


def test_what_is_over_is_forgotten_and_nothing_else() -> None:
    now = 0
    revoked = Revoked(lambda: now)
    revoked.add(Revocation(Kind.USER, "for ever", 0))
    most = 0
    for now in range(20 * FEW):
        revoked.add(Revocation(Kind.TOKEN, str(now), now, now + FEW))
        most = max(most, len(revoked))
    assert most <= 2 * (FEW + 2)
    assert revoked.has(of("for ever"))
    assert all(revoked.has(of(token_id=str(n))) for n in range(now - FEW, now))
