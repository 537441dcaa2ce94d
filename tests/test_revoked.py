"""What a worker knows to be revoked: all that it was told, until that is over."""

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation
from gateway.revoked import SLACK_MS, Revoked


def token(id: str, until: int | None = None) -> Revocation:
    return Revocation(Kind.TOKEN, id, 1, until)


def user(at: int) -> Revocation:
    return Revocation(Kind.USER, "u", at)


def holder(id: str) -> Identity:
    return Identity(user="u", expires_ms=1, issued_ms=100, token_id=id)


def test_what_is_told_while_the_list_is_read_stays_revoked() -> None:
    revoked = Revoked()
    revoked.add(token("told"))
    revoked.learn([token("read")], 1)
    assert revoked.has(holder("told"))
    assert revoked.has(holder("read"))
    assert not revoked.has(holder("another"))


def test_an_earlier_revocation_of_a_user_does_not_take_back_a_later_one() -> None:
    revoked = Revoked()
    revoked.add(user(at=100))
    revoked.learn([user(at=99)], 1)
    assert revoked.has(holder("a"))


def test_what_is_over_is_forgotten() -> None:
    revoked = Revoked()
    for number in range(1000):
        revoked.add(token(str(number), until=number))
    revoked.add(token("for ever"))
    revoked.learn([], 500 + SLACK_MS)
    assert len(revoked) == 501
    assert not revoked.has(holder("499"))
    assert revoked.has(holder("500"))
    assert revoked.has(holder("for ever"))
