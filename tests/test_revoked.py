"""What a worker knows to be revoked, whatever becomes of the links by which it learns that."""

import redis
from running import running, until
from tokens import SECRET

from gateway.identity import Identity
from gateway.revocation import Kind, Revocation
from gateway.revoked import MIN_KEPT, Revoked


def token(id: str, *, until_ms: int | None = None) -> Revocation:
    return Revocation(Kind.TOKEN, id, 1, until_ms)


def bearer_of(id: str, user: str = "u", issued_ms: int = 0) -> Identity:
    return Identity(user=user, token_id=id, issued_ms=issued_ms, expires_ms=10**15)


def test_of_a_user_the_latest_revocation_counts_in_whichever_order_they_come() -> None:
    revoked = Revoked(lambda: 0)
    for at_ms in (5, 9, 7):
        revoked.add(Revocation(Kind.USER, "u", at_ms))
    assert revoked.has(bearer_of("x", issued_ms=9))
    assert not revoked.has(bearer_of("x", issued_ms=10))
    assert not revoked.has(bearer_of("u", user="v"))


def test_what_is_over_is_forgotten_and_nothing_else() -> None:
    now_ms = 0
    revoked = Revoked(lambda: now_ms)
    for id in range(10 * MIN_KEPT):
        now_ms = id
        revoked.add(token(str(id), until_ms=id + 5))
        assert len(revoked) <= MIN_KEPT + 1
    assert revoked.has(bearer_of(str(now_ms)))
    assert revoked.has(bearer_of(str(now_ms - 4)))


async def test_who_could_not_hear_of_a_revocation_for_a_while_reads_it(
    redis_port: int, new_prefix: str, client: redis.Redis
) -> None:
    """Only the link by which workers hear of each other was lost; that of commands stood."""
    url = f"redis://127.0.0.1:{redis_port}"
    async with running(redis=url, redis_prefix=new_prefix, jwt_key=SECRET) as gateway:
        node = gateway.node
        await until(lambda: node.bus.ready and node.ledger.loaded)
        client.hset(f"{new_prefix}revoked", "token:unheard", "1 -")
        lost = node.bus.statistics().link.lost
        client.client_kill_filter(_type="pubsub")
        await until(lambda: node.revoked.has(bearer_of("unheard")))
        assert node.bus.statistics().link.lost == lost + 1


async def test_a_redis_that_has_lost_the_list_brings_no_token_back(
    redis_port: int, new_prefix: str, client: redis.Redis
) -> None:
    url = f"redis://127.0.0.1:{redis_port}"
    async with running(redis=url, redis_prefix=new_prefix, jwt_key=SECRET) as gateway:
        node = gateway.node
        await until(lambda: node.bus.ready and node.ledger.loaded)
        await node.ledger.revoke(token("lost"))
        heard: list[int] = []
        node.ledger.hear.append(lambda revocations: heard.append(len(revocations)))
        client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: heard[-1:] == [1])
        client.delete(f"{new_prefix}revoked")
        client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: heard[-1:] == [0])
        assert node.revoked.has(bearer_of("lost"))
