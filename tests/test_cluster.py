"""What workers ask of each other, over a link that does whatever a test wants of it.

All time is virtual: what is answered "at once" is answered at the same instant.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rig import Peer, Rig, running
from tokens import SECRET, token
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import messages
from gateway.api import admin, clients, tokens
from gateway.api.commands import serve_cluster
from gateway.api.request import PROBLEM, Answer, Request, parse_target
from gateway.cluster import (
    COMMAND_SECONDS,
    JOIN_SECONDS,
    MAX_IN_FLIGHT,
    MAX_QUEUED,
    MAX_WAITING,
    READ_SECONDS,
    REMEMBERED,
    Cluster,
    ClusterStatistics,
)
from gateway.config import Config
from gateway.errors import (
    BadRequest,
    ChannelEnded,
    ContentTooLarge,
    GatewayError,
    NotFound,
    Unavailable,
)
from gateway.identity import Identity
from gateway.messages import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, Command
from gateway.metrics import render
from gateway.stream_state import Reason, State

Alter = Callable[[bytes], bytes]


class Network:
    """The workers that live, and how messages pass between them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.workers: dict[str, Cluster] = {}
        self.lost: set[str] = set()
        """Tags of workers that cannot send."""
        self.told_of_loss: dict[str, str] = {}
        self.deaf: set[str] = set()
        """Tags of workers that are counted, and that nothing reaches."""
        self.delays: dict[str, float] = {}
        """Seconds that a message to a worker takes, by its tag."""
        self.copies = 1
        self.miscount = 0
        self.hangs = False
        self.alter: Alter = bytes
        self._nursery = nursery
        self._made = trio.current_time()

    @property
    def elapsed(self) -> float:
        """Seconds since this network was made."""
        return round(trio.current_time() - self._made, 6)

    def join(self, cluster: Cluster) -> None:
        cluster.link = NetworkLink(self, cluster.tag)
        self.workers[cluster.tag] = cluster

    def pass_on(self, worker: str | None, message: bytes) -> int:
        reached = [tag for tag in self.workers if worker in (None, tag)]
        for tag in reached:
            for _ in range(self.copies):
                self._nursery.start_soon(self._deliver, tag, self.alter(message))
        return len(reached) + self.miscount

    async def _deliver(self, tag: str, message: bytes) -> None:
        await trio.sleep(self.delays.get(tag, 0))
        if tag in self.workers and tag not in self.deaf:
            self.workers[tag].receive(message)


@dataclass
class NetworkLink:
    network: Network
    tag: str

    async def send(self, worker: str | None, message: bytes) -> int:
        await trio.lowlevel.checkpoint()
        if self.tag in self.network.lost:
            raise Unavailable("The link is lost.", **self.network.told_of_loss)
        if self.network.hangs:
            await trio.sleep_forever()
        return self.network.pass_on(worker, message)


# -- the cluster by itself


class Word(msgspec.Struct):
    word: str


class Said(msgspec.Struct):
    by: str
    word: str


SAY = Command("say", Word, Said, 2.0)

Say = Callable[[Word], Awaitable[Said]]


@dataclass
class Worker:
    cluster: Cluster
    heard: list[str]

    async def say(self, asked: Word) -> Said:
        self.heard.append(asked.word)
        await trio.lowlevel.checkpoint()
        return Said(self.cluster.tag, asked.word)

    @property
    def counted(self) -> ClusterStatistics:
        return self.cluster.statistics()


@asynccontextmanager
async def workers(count: int) -> AsyncIterator[tuple[Network, Sequence[Worker]]]:
    async with trio.open_nursery() as nursery:
        network = Network(nursery)
        made = [Worker(Cluster(f"{number:08x}"), []) for number in range(count)]
        for worker in made:
            worker.cluster.serve(SAY, worker.say)
            network.join(worker.cluster)
            nursery.start_soon(worker.cluster.run)
        yield network, made
        assert all(not worker.counted.waiting for worker in made)
        nursery.cancel_scope.cancel()


async def ask(asker: Worker, asked: Worker, word: str = "x") -> Said | None:
    return await asker.cluster.ask(asked.cluster.tag, SAY, Word(word))


async def outcome(asking: Awaitable[object]) -> object:
    """The outcome that an Unavailable tells."""
    with pytest.raises(Unavailable) as caught:
        await asking
    return caught.value.extra["outcome"]


async def test_a_worker_is_asked_by_its_tag_and_nobody_else_is() -> None:
    async with workers(3) as (_, (a, b, c)):
        assert await ask(a, b) == Said(b.cluster.tag, "x")
        assert (a.heard, b.heard, c.heard) == ([], ["x"], [])
        assert (a.counted.sent, a.counted.answered, b.counted.served) == (1, 1, 1)


async def test_that_there_is_no_such_worker_is_known_at_once(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        del network.workers[b.cluster.tag]
        assert await ask(a, b) is None
        assert network.elapsed == 0
        a.cluster.link = None
        assert await ask(a, b) is None


async def test_all_are_asked_and_the_asker_answers_too(autojump_clock: MockClock) -> None:
    async with workers(3) as (network, made):
        gathered = await made[1].cluster.ask_all(SAY, Word("x"))
        assert {said.by for said in gathered.told} == {w.cluster.tag for w in made}
        assert gathered.missing == 0
        assert network.elapsed == 0


async def test_without_a_link_a_worker_is_all_there_is() -> None:
    alone = Worker(Cluster("a"), [])
    alone.cluster.serve(SAY, alone.say)
    assert await ask(alone, alone) == Said("a", "x")
    gathered = await alone.cluster.ask_all(SAY, Word("x"))
    assert (list(gathered.told), gathered.missing) == ([Said("a", "x")], 0)


@pytest.mark.parametrize("error", [BadRequest, NotFound, ChannelEnded, Unavailable])
async def test_a_refusal_is_raised_where_it_was_asked_for(error: type[GatewayError]) -> None:
    async def refuse(asked: Word) -> Said:
        raise error("No.", reason="channels")

    async with workers(2) as (_, (a, b)):
        b.cluster.serve(SAY, refuse)
        with pytest.raises(error) as caught:
            await ask(a, b)
        assert caught.value.problem() == error("No.", reason="channels").problem()


async def test_a_fault_in_a_command_ends_nothing_but_that_command(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and who asked is told at once that the outcome is unknown."""

    async def fail(asked: Word) -> Said:
        raise ZeroDivisionError

    async with workers(2) as (network, (a, b)):
        b.cluster.serve(SAY, fail)
        assert await outcome(ask(a, b)) == "unknown"
        assert "ZeroDivisionError" in caplog.text
        b.cluster.serve(SAY, b.say)
        assert await ask(a, b) == Said(b.cluster.tag, "x")
        assert network.elapsed == 0


async def test_only_the_worker_that_was_asked_can_answer(autojump_clock: MockClock) -> None:
    async with workers(3) as (network, (a, b, c)):
        network.deaf = {b.cluster.tag}
        ids: list[int] = []

        def note(message: bytes) -> bytes:
            ids.append(msgspec.msgpack.decode(message, type=messages.Head).id)
            return message

        network.alter = note
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, ask(a, b))
            await wait_all_tasks_blocked()
            answer = messages.told(c.cluster.tag, ids[0], Said(c.cluster.tag, "x"))
            a.cluster.receive(messages.encode(answer))
        assert (a.counted.malformed, a.counted.answered, a.counted.timed_out) == (1, 0, 1)
        assert network.elapsed == SAY.seconds


async def test_the_ids_of_requests_cannot_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the highest there may be is still a number that a message can have."""
    assert next(Cluster("a")._ids) != next(Cluster("a")._ids)
    monkeypatch.setattr("gateway.cluster.secrets.randbits", lambda bits: 2**bits - 1)
    async with workers(2) as (_, (a, b)):
        for _ in range(2):
            assert await ask(a, b) == Said(b.cluster.tag, "x")


async def test_a_silent_worker_is_waited_for_no_longer_than_the_command_says(
    autojump_clock: MockClock,
) -> None:
    async with workers(2) as (network, (a, b)):
        network.deaf = {b.cluster.tag}
        assert await outcome(ask(a, b)) == "unknown"
        assert network.elapsed == SAY.seconds
        assert a.counted.timed_out == 1


async def test_who_does_not_answer_all_is_missing_and_the_others_count(
    autojump_clock: MockClock,
) -> None:
    async with workers(4) as (network, made):
        network.deaf = {made[2].cluster.tag, made[3].cluster.tag}
        gathered = await made[0].cluster.ask_all(SAY, Word("x"))
        assert {said.by for said in gathered.told} == {w.cluster.tag for w in made[:2]}
        assert gathered.missing == 2
        assert network.elapsed == SAY.seconds
        assert made[0].counted.timed_out == 2


async def test_an_answer_that_comes_late_is_ignored(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        network.delays[a.cluster.tag] = SAY.seconds + 1
        assert await outcome(ask(a, b)) == "unknown"
        await trio.sleep(2)
        assert (a.counted.late, a.counted.answered) == (1, 0)
        network.delays.clear()
        assert await ask(a, b, "y") == Said(b.cluster.tag, "y")


async def test_a_message_that_comes_again_does_nothing() -> None:
    async with workers(2) as (network, (a, b)):
        network.copies = 3
        assert await ask(a, b) == Said(b.cluster.tag, "x")
        gathered = await a.cluster.ask_all(SAY, Word("y"))
        assert (len(gathered.told), gathered.missing) == (2, 0)
        await wait_all_tasks_blocked()
        assert (a.heard, b.heard) == (["y"], ["x", "y"])
        assert (b.counted.repeated, a.counted.late) == (4, 4)


async def test_a_count_that_is_wrong_costs_time_or_an_answer_and_no_more(
    autojump_clock: MockClock,
) -> None:
    async with workers(3) as (network, (a, b, _)):
        network.miscount = 1
        assert await ask(a, b) == Said(b.cluster.tag, "x")  # the second one is never waited out
        assert (await a.cluster.ask_all(SAY, Word("x"))).missing == 1
        network.miscount = -1
        gathered = await a.cluster.ask_all(SAY, Word("x"))
        assert len(gathered.told) >= 2
        assert gathered.missing == 0
        network.miscount = -3
        assert await outcome(a.cluster.ask_all(SAY, Word("x"))) == "refused"


async def test_while_the_link_is_lost_only_the_worker_itself_can_be_asked(
    autojump_clock: MockClock,
) -> None:
    async with workers(2) as (network, (a, b)):
        network.lost = {a.cluster.tag}
        assert await outcome(ask(a, b)) == "unknown"
        assert await outcome(a.cluster.ask_all(SAY, Word("x"))) == "unknown"
        network.told_of_loss = {"outcome": "refused"}
        assert await outcome(ask(a, b)) == "refused"
        assert await ask(a, a) == Said(a.cluster.tag, "x")
        assert (b.heard, a.counted.sent, network.elapsed) == ([], 0, 0)


async def test_a_link_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        network.hangs = True
        assert await outcome(ask(a, b)) == "unknown"
        assert await outcome(a.cluster.ask_all(SAY, Word("x"))) == "unknown"
        assert network.elapsed == 2 * SAY.seconds


async def test_an_answer_that_cannot_be_sent_is_counted(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        network.lost = {b.cluster.tag}
        assert await outcome(ask(a, b)) == "unknown"
        assert b.heard == ["x"]
        assert (b.counted.unanswered, b.counted.served) == (1, 0)


async def test_an_asker_that_is_cancelled_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        network.deaf = {b.cluster.tag}
        with trio.move_on_after(0.5):
            await ask(a, b)
        assert network.elapsed == 0.5
        assert a.counted.waiting == 0


# -- versions


def as_version(version: int, kind: str) -> Alter:
    """Make the messages of one kind those of another version: only the head is as it was."""

    def alter(message: bytes) -> bytes:
        decoded = msgspec.msgpack.decode(message, type=dict[str, object])
        if decoded["kind"] != kind:
            return message
        head = {name: decoded[name] for name in ("kind", "id", "worker")}
        return msgspec.msgpack.encode({**head, "v": version, "new": [1]})

    return alter


async def test_a_request_of_another_version_is_answered_at_once_and_not_carried_out(
    autojump_clock: MockClock,
) -> None:
    async with workers(2) as (network, (a, b)):
        network.alter = as_version(messages.VERSION + 1, messages.REQUEST)
        assert await outcome(ask(a, b)) == "refused"
        assert network.elapsed == 0
        assert (b.heard, b.counted.unknown_version) == ([], 1)


async def test_an_answer_of_another_version_says_that_nothing_was_understood(
    autojump_clock: MockClock,
) -> None:
    async with workers(2) as (network, (a, b)):
        network.alter = as_version(messages.VERSION + 1, messages.ANSWER)
        assert await outcome(ask(a, b)) == "refused"
        gathered = await a.cluster.ask_all(SAY, Word("x"))
        assert [said.by for said in gathered.told] == [a.cluster.tag]  # which needs no message
        assert gathered.missing == 1
        assert network.elapsed == 0
        assert a.counted.unknown_version == 2


@pytest.mark.parametrize(
    "command",
    [
        Command("sing", Word, Said, 2.0),
        Command("say", msgspec.defstruct("Number", [("word", int)]), Said, 2.0),
    ],
)
async def test_what_the_other_worker_does_not_know_is_refused_at_once(
    command: Command[msgspec.Struct, Said], autojump_clock: MockClock
) -> None:
    async with workers(2) as (network, (a, b)):
        asked = command.asked(1)
        assert await outcome(a.cluster.ask(b.cluster.tag, command, asked)) == "refused"
        assert (b.heard, network.elapsed) == ([], 0)


async def test_an_answer_of_another_shape_is_none() -> None:
    shape = msgspec.defstruct("Shape", [("other", int)])
    async with workers(2) as (_, (a, b)):
        command = Command("say", Word, shape, 2.0)
        assert await outcome(a.cluster.ask(b.cluster.tag, command, Word("x"))) == "unknown"


async def test_a_status_that_is_no_refusal_is_no_answer() -> None:
    async def fail(asked: Word) -> Said:
        raise GatewayError("A fault.")

    async with workers(2) as (_, (a, b)):
        b.cluster.serve(SAY, fail)
        assert await outcome(ask(a, b)) == "unknown"
        assert (await a.cluster.ask_all(SAY, Word("x"))).missing == 1


def _shown(value: object) -> str:
    """The same in each process: an Ext shows where it is in memory."""
    return re.sub(" object at 0x[0-9a-f]+", "", repr(value))


@pytest.mark.parametrize("status", [400, 404, 409, 413, 503])
@pytest.mark.parametrize(
    "problem",
    [
        None,
        [],
        "x",
        {"detail": 1},
        {"outcome": {"a": []}},
        {"closed": "all"},
        {"detail": msgspec.msgpack.Ext(1, b"x")},
    ],
    ids=_shown,
)
async def test_a_refusal_that_cannot_be_read_leaves_the_outcome_unknown(
    status: int, problem: object
) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(problem))
    answer = messages.Answer(kind="answer", id=1, worker="00000001", status=status, told=raw)
    with pytest.raises(Unavailable) as caught:
        answer.read(SAY)
    assert caught.value.extra == {"outcome": "unknown"}


@pytest.mark.parametrize("junk", [1, msgspec.msgpack.Ext(1, b"x"), {"a": [{1: None}]}], ids=_shown)
async def test_what_else_a_refusal_says_goes_no_further(junk: object) -> None:
    problem = {"self": junk, "extra": junk, "title": junk, "detail": "No.", "closed": 2}
    raw = msgspec.Raw(msgspec.msgpack.encode(problem))
    answer = messages.Answer(kind="answer", id=1, worker="00000001", status=503, told=raw)
    with pytest.raises(Unavailable) as caught:
        answer.read(SAY)
    assert caught.value.problem() == Unavailable("No.", closed=2).problem()


VALID = [
    messages.request("00000001", 1, SAY, Word("x")),
    messages.encode(messages.told("00000001", 1, Said("b", "x"))),
]

CHANGED = st.builds(
    lambda message, at, to: message[: at % len(message)] + to + message[at % len(message) + 1 :],
    st.sampled_from(VALID),
    st.integers(0, 1000),
    st.binary(max_size=3),
)

NESTED = b"\x81\xa1z" + b"\x91" * 100_000

TAGS = ["", "0000001", "000000011", "0000000A", "0000000g", "00000001\n", "*", "x" * 60_000]
"""Of no worker."""

TOO_LARGE = msgspec.msgpack.encode(
    {**msgspec.msgpack.decode(VALID[0], type=dict[str, object]), "new": "x" * MAX_MESSAGE_BYTES}
)


def changed(**members: object) -> bytes:
    """A valid request but for these members."""
    valid = msgspec.msgpack.decode(VALID[0], type=dict[str, object])
    return msgspec.msgpack.encode({**valid, **members})


@given(st.binary(max_size=100) | CHANGED)
async def test_whatever_comes_in_is_a_message_or_counted(message: bytes) -> None:
    cluster = Cluster("a")
    cluster.receive(message)
    now = cluster.statistics()
    assert now.malformed + now.late + now.queued == 1


@pytest.mark.parametrize(
    "message",
    [
        b"",
        NESTED,
        b"\x90",
        TOO_LARGE,
        VALID[0][:-1],
        changed(new="x" * MAX_REQUEST_BYTES),
        changed(v=messages.VERSION + 1, new="x" * MAX_REQUEST_BYTES),
        *(changed(worker=tag) for tag in TAGS),
    ],
    ids=["nothing", "nested", "array", "large", "cut", "long", "long and new", *map(repr, TAGS)],
)
async def test_what_is_no_message_is_counted(message: bytes) -> None:
    cluster = Cluster("a")
    cluster.receive(message)
    assert cluster.statistics().malformed == 1


# -- bounds


def blocked(until: trio.Event, begun: list[str]) -> Say:
    async def wait(asked: Word) -> Said:
        begun.append(asked.word)
        await until.wait()
        return Said("", asked.word)

    return wait


async def test_so_many_are_carried_out_at_a_time_and_so_many_wait() -> None:
    """The others are dropped, and who asked is told as if there were no answer."""
    async with workers(2) as (_, (_, b)):
        go_on, begun = trio.Event(), list[str]()
        b.cluster.serve(SAY, blocked(go_on, begun))
        room = MAX_IN_FLIGHT + 1 + MAX_QUEUED  # one is in the hands of the task that starts them
        for id in range(room - MAX_QUEUED):
            b.cluster.receive(messages.request("00000000", id, SAY, Word(str(id))))
        await wait_all_tasks_blocked()
        for id in range(room - MAX_QUEUED, room + 5):
            b.cluster.receive(messages.request("00000000", id, SAY, Word(str(id))))
        await wait_all_tasks_blocked()
        assert len(begun) == MAX_IN_FLIGHT
        assert (b.counted.queued, b.counted.dropped) == (MAX_QUEUED, 5)
        go_on.set()
        await wait_all_tasks_blocked()
        assert begun == [str(id) for id in range(room)]
        assert (b.counted.queued, b.counted.served) == (0, room)


async def test_what_waited_longer_than_its_asker_is_not_begun(autojump_clock: MockClock) -> None:
    async with workers(2) as (_, (_, b)):
        begun = list[str]()
        b.cluster.serve(SAY, blocked(trio.Event(), begun))
        for id in range(MAX_IN_FLIGHT + 5):
            b.cluster.receive(messages.request("00000000", id, SAY, Word("x")))
        await trio.sleep(SAY.seconds + 1)
        assert len(begun) == MAX_IN_FLIGHT
        assert (b.counted.unanswered, b.counted.dropped) == (MAX_IN_FLIGHT, 5)


async def test_nobodys_patience_is_without_end_here(autojump_clock: MockClock) -> None:
    async with workers(2) as (_, (_, b)):
        b.cluster.serve(SAY, blocked(trio.Event(), []))
        b.cluster.receive(
            messages.request("00000000", 0, Command("say", Word, Said, 1e9), Word(""))
        )
        await trio.sleep(JOIN_SECONDS + 1)
        assert b.counted.unanswered == 1


async def test_a_busy_worker_takes_the_answers_of_others_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with workers(2) as (network, (a, b)):
        a.cluster.serve(SAY, blocked(trio.Event(), []))
        for id in range(MAX_IN_FLIGHT + 5):
            a.cluster.receive(messages.request(b.cluster.tag, id, SAY, Word("x")))
        await wait_all_tasks_blocked()
        assert await ask(a, b) == Said(b.cluster.tag, "x")
        assert network.elapsed == 0


async def test_repetitions_are_known_among_so_many() -> None:
    async with workers(2) as (_, (_, b)):
        for start in range(0, REMEMBERED, MAX_QUEUED):
            for id in range(start, start + MAX_QUEUED):
                b.cluster.receive(messages.request("00000000", id, SAY, Word("x")))
            await wait_all_tasks_blocked()
        b.cluster.receive(messages.request("00000000", 0, SAY, Word("x")))
        assert b.counted.repeated == 1
        b.cluster.receive(messages.request("00000000", REMEMBERED, SAY, Word("x")))
        b.cluster.receive(messages.request("00000000", 0, SAY, Word("x")))
        assert b.counted.repeated == 1


async def test_so_many_requests_may_wait_for_answers(autojump_clock: MockClock) -> None:
    async with workers(2) as (network, (a, b)):
        network.deaf = {b.cluster.tag}
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_WAITING):
                nursery.start_soon(outcome, ask(a, b))
            await wait_all_tasks_blocked()
            assert a.counted.waiting == MAX_WAITING
            assert await outcome(ask(a, b)) == "refused"
            assert await ask(a, a) == Said(a.cluster.tag, "x")
            nursery.cancel_scope.cancel()


async def test_what_is_too_large_is_not_sent(autojump_clock: MockClock) -> None:
    async def much(asked: Word) -> Said:
        return Said("", "x" * MAX_MESSAGE_BYTES)

    async def more(asked: Word) -> Said:
        return Said("", "x" * (MAX_MESSAGE_BYTES - 1000))

    async with workers(2) as (network, (a, b)):
        with pytest.raises(ContentTooLarge):
            await ask(a, b, "x" * MAX_REQUEST_BYTES)
        b.cluster.serve(SAY, much)
        assert await outcome(ask(a, b)) == "unknown"
        assert network.elapsed == 0
        most = "x" * (MAX_REQUEST_BYTES - 1000)
        b.cluster.serve(SAY, b.say)
        assert await ask(a, b, most) == Said(b.cluster.tag, most)
        b.cluster.serve(SAY, more)
        assert await ask(a, b) == await more(Word(""))


# -- what is asked over HTTP


@asynccontextmanager
async def nodes(*ids: str, jwt_key: str = "") -> AsyncIterator[tuple[Network, Sequence[Rig]]]:
    """Workers, each of the node of that id; those of one id are of one node."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        network = Network(nursery)
        rigs = []
        for id in ids:
            rig = await stack.enter_async_context(running(Config(node_id=id, jwt_key=jwt_key)))
            serve_cluster(rig.node)
            network.join(rig.node.cluster)
            rigs.append(rig)
        yield network, rigs
        nursery.cancel_scope.cancel()


def put(target: str) -> Request:
    return Request("PUT", *parse_target(target.encode()), lambda name: None, b"", "127.0.0.1")


async def add(rig: Rig, peer: Peer, channel: str, query: str = "") -> Answer:
    request = put(f"/clients/{peer.client.id}/channels/{channel}{query}")
    return await clients.add_channel(rig.node, request, peer.client.id, channel)


def document(answer: Answer, status: int) -> dict[str, object]:
    """What an answer of that status says."""
    assert answer.status == status, answer
    assert (answer.media_type == PROBLEM) == (status >= 400)
    if status == 503:
        assert dict(answer.headers).keys() == {b"Retry-After", b"Cache-Control"}
    decoded: dict[str, object] = msgspec.json.decode(answer.body, type=dict[str, object])
    return decoded


def by_clients(rig: Rig, id: str) -> dict[str, Callable[[], Awaitable[Answer]]]:
    """Everything that is asked about one client."""
    node = rig.node
    return {
        "add": lambda: clients.add_channel(node, put("/"), id, "b"),
        "remove": lambda: clients.remove_channel(node, put("/"), id, "b"),
        "close": lambda: clients.close_client(node, put("/"), id),
    }


async def test_a_client_is_changed_and_closed_through_any_worker(autojump_clock: MockClock) -> None:
    async with nodes("a", "a", "b") as (network, rigs):
        for rig in rigs:
            peer = await rigs[1].open_live("a")
            added = document(await add(rig, peer, "b"), 200)
            assert added["channels"] == ["a", "b"]
            assert peer.client.has("b")
            removed = document(
                await clients.remove_channel(rig.node, put("/"), peer.client.id, "b"), 200
            )
            assert removed["channels"] == ["a"]
            assert not peer.client.has("b")
            closed = await clients.close_client(rig.node, put("/"), peer.client.id)
            assert document(closed, 200) == {"closed": 1}
            await peer.read_all()
            assert peer.ended
            document(await clients.close_client(rig.node, put("/"), peer.client.id), 404)
        assert network.elapsed == 0


async def test_what_was_missed_since_a_position_comes_through_another_worker_too() -> None:
    async with nodes("a", "b") as (_, (here, there)):
        first, _ = [await there.publish("b", f"old {number}") for number in range(2)]
        peer = await there.open_live("a")
        document(await add(here, peer, "b", f"?since={first}"), 200)
        document(await add(here, peer, "c", "?since=what"), 200)
        await peer.read_all()
        assert peer.data == ["old 1"]
        assert peer.gaps == [(["c"], "unknown")]


@pytest.mark.parametrize(
    "id", ["nobody", "", ".", "00000000", "00000000.", "00000000.x", "0000000.x", "clients:*.x"]
)
async def test_a_client_that_no_node_has_is_404_at_once(id: str, autojump_clock: MockClock) -> None:
    async with nodes("a", "b") as (network, (here, _)):
        for asking in by_clients(here, id).values():
            assert "no client" in str(document(await asking(), 404)["detail"])
        assert network.elapsed == 0


async def test_clients_of_a_worker_that_died_are_404_at_once(autojump_clock: MockClock) -> None:
    async with nodes("a", "b") as (network, (here, there)):
        peer = await there.open_live("b")
        del network.workers[there.node.tag]
        for asking in by_clients(here, peer.client.id).values():
            document(await asking(), 404)
        assert network.elapsed == 0


async def test_a_refusal_of_another_worker_is_the_answer() -> None:
    async with nodes("a", "b") as (_, (here, there)):
        await there.publish("over", "x", end=True)
        peer = await there.open_live("a")
        for channel, status, says in (
            ("b c", 400, "contains ' '"),
            ("user:1", 400, "reserved"),
            ("over", 409, "has ended"),
        ):
            assert says in str(document(await add(here, peer, channel), status)["detail"])
        removed = await clients.remove_channel(here.node, put("/"), peer.client.id, "b")
        assert "does not have" in str(document(removed, 404)["detail"])


async def test_a_client_whose_worker_is_silent_has_an_unknown_fate(
    autojump_clock: MockClock,
) -> None:
    async with nodes("a", "b") as (network, (here, there)):
        peer = await there.open_live("b")
        network.deaf = {there.node.tag}
        for name, asking in by_clients(here, peer.client.id).items():
            before = network.elapsed
            assert document(await asking(), 503)["outcome"] == "unknown"
            bound = JOIN_SECONDS if name == "add" else COMMAND_SECONDS
            assert network.elapsed - before == pytest.approx(bound)
        assert here.node.refused == {"channels": 1, "cluster": 2}


async def test_own_clients_need_no_link(autojump_clock: MockClock) -> None:
    async with nodes("a", "b") as (network, (here, there)):
        own, other = await here.open_live("a", user="u"), await there.open_live("b", user="u")
        network.lost = {here.node.tag}
        for asking in by_clients(here, other.client.id).values():
            document(await asking(), 503)
        for read in (admin.stats(here.node, put("/")), admin.channel(here.node, put("/"), "a")):
            document(await read, 503)
        document(await clients.close_user(here.node, put("/"), "u"), 503)
        document(await add(here, own, "b"), 200)
        for asking in by_clients(here, own.client.id).values():
            document(await asking(), 200)
        await other.read_all()
        assert not other.ended
        assert network.elapsed == 0


async def asked_by_admin(rig: Rig, target: str) -> Answer:
    """DELETE, with the token of an administrator; the nodes here have a key."""
    headers = {b"authorization": b"Bearer " + token("root", admin=True).encode()}
    request = Request("DELETE", *parse_target(target.encode()), headers.get, b"", "")
    *_, name = request.path.split("/")
    if "/users/" in target:
        return await clients.close_user(rig.node, request, name)
    return await tokens.revoke_token(rig.node, request, name)


def identity(user: str, token_id: str) -> Identity:
    return Identity(user=user, expires_ms=4_000_000_000_000, token_id=token_id)


async def test_what_is_revoked_at_one_node_is_so_at_all_at_once(autojump_clock: MockClock) -> None:
    async with nodes("a", "b", "b", jwt_key=SECRET) as (network, rigs):
        of_user = [await rig.open_live("a", identity=identity("u", "1"), user="u") for rig in rigs]
        of_token = [await rig.open_live("a", identity=identity("v", "2"), user="v") for rig in rigs]
        others = [await rig.open_live("a", identity=identity("v", "3"), user="v") for rig in rigs]
        answer = await asked_by_admin(rigs[0], "/users/u?revoke=true")
        assert document(answer, 200) == {"closed": 3, "durable": False}
        answer = await asked_by_admin(rigs[2], "/tokens/2")
        assert document(answer, 200) == {"closed": 3, "durable": False}
        for peer in (*of_user, *of_token):
            await peer.read_all()
            assert peer.ended
            assert peer.client.reason is Reason.REVOKED
        assert all(peer.client.state is State.LIVE for peer in others)
        for rig in rigs:
            assert rig.node.revoked.has(identity("u", "9"))
            assert rig.node.revoked.has(identity("w", "2"))
            assert not rig.node.revoked.has(identity("v", "3"))
        assert network.elapsed == 0


async def test_a_revocation_that_a_worker_has_not_heard_of_is_not_called_done(
    autojump_clock: MockClock,
) -> None:
    async with nodes("a", "b", jwt_key=SECRET) as (network, (here, there)):
        peer = await here.open_live("a", identity=identity("u", "1"), user="u")
        network.deaf = {there.node.tag}
        answer = document(await asked_by_admin(here, "/users/u?revoke=true"), 503)
        assert (answer["outcome"], answer["closed"], answer["missing"]) == ("unknown", 1, 1)
        await peer.read_all()
        assert peer.ended
        assert here.node.revoked.has(identity("u", "9"))


async def test_a_users_streams_are_closed_on_all_nodes() -> None:
    async with nodes("a", "b", "b") as (_, rigs):
        peers = [await rig.open_live("a", user="u") for rig in rigs for _ in range(2)]
        other = await rigs[1].open_live("a", user="v")
        assert document(await clients.close_user(rigs[0].node, put("/"), "u"), 200) == {"closed": 6}
        for peer in peers:
            await peer.read_all()
            assert peer.ended
        assert document(await clients.close_user(rigs[0].node, put("/"), "u"), 200) == {"closed": 0}
        await other.read_all()
        assert not other.ended


async def test_what_is_known_of_a_users_streams_is_told_if_a_worker_is_silent(
    autojump_clock: MockClock,
) -> None:
    async with nodes("a", "b", "c") as (network, rigs):
        for rig in rigs:
            await rig.open_live("a", user="u")
        network.deaf = {rigs[2].node.tag}
        told = document(await clients.close_user(rigs[0].node, put("/"), "u"), 503)
        assert (told["closed"], told["missing"], told["outcome"]) == (2, 1, "unknown")
        assert network.elapsed == COMMAND_SECONDS
        assert rigs[0].node.refused == {"cluster": 1}


async def test_a_channels_clients_are_counted_on_all_nodes(autojump_clock: MockClock) -> None:
    async with nodes("b", "a", "b", "c") as (network, rigs):
        for rig in rigs[:3]:
            await rig.open_live("x")
        last = await rigs[3].publish("x", "data")
        told = document(await admin.channel(rigs[3].node, put("/"), "x"), 200)
        assert told == {
            "channel": "x",
            "clients": 3,
            "lastEventId": str(last),
            "missing": 0,
            "nodes": [{"id": "a", "clients": 1}, {"id": "b", "clients": 2}],
            "policy": "drop",
        }
        network.deaf = {rigs[1].node.tag}
        told = document(await admin.channel(rigs[3].node, put("/"), "x"), 200)
        assert (told["clients"], told["missing"]) == (2, 1)
        assert network.elapsed == READ_SECONDS
        document(await admin.channel(rigs[3].node, put("/"), "a b"), 400)


def summary(answer: Answer) -> tuple[object, object, list[tuple[object, ...]]]:
    """The clients, the workers that are missing, and of each node its id, clients and workers."""
    told = document(answer, 200)
    described = msgspec.convert(told["nodes"], list[dict[str, object]])
    listed = [tuple(node[name] for name in ("id", "clients", "workers")) for node in described]
    return told["clients"], told["missing"], listed


async def test_the_statistics_are_of_all_nodes_each_the_sum_of_its_workers() -> None:
    async with nodes("b", "a", "b") as (_, rigs):
        for number, rig in enumerate(rigs, 1):
            for _ in range(number):
                peer = await rig.open_live("x")
            await rig.publish("x", "data")
            await peer.read_all()
        rigs[0].node.draining = rigs[2].node.draining = True
        rigs[0].node._started -= 100  # the other worker was started anew
        told = document(await admin.stats(rigs[1].node, put("/")), 200)
        a, b = msgspec.convert(told.pop("nodes"), list[dict[str, object]])
        assert told == {
            "clients": 6,
            "channels": 3,
            "published": 3,
            "delivered": 6,
            "dropped": 0,
            "missing": 0,
        }
        assert float(str(a.pop("uptimeSeconds"))) < 100 <= float(str(b.pop("uptimeSeconds")))
        numbers = {"channels": 1, "published": 1, "dropped": 0, "behind": 0, "workers": 1}
        assert a == {**numbers, "id": "a", "clients": 2, "delivered": 2, "draining": False}
        numbers = {"channels": 2, "published": 2, "dropped": 0, "behind": 0, "workers": 2}
        assert b == {**numbers, "id": "b", "clients": 4, "delivered": 4, "draining": True}


async def test_a_node_drains_when_all_of_its_workers_do() -> None:
    """One that leaves alone is replaced."""
    async with nodes("a", "a") as (_, rigs):
        for rig, drains in zip(rigs, (False, True), strict=True):
            rig.node.draining = True
            told = document(await admin.stats(rigs[0].node, put("/")), 200)
            (described,) = msgspec.convert(told["nodes"], list[dict[str, object]])
            assert described["draining"] is drains


async def test_a_node_that_died_is_not_among_them(autojump_clock: MockClock) -> None:
    """While the link still counts it, it is missing; then not even that."""
    async with nodes("a", "b", "b") as (network, rigs):
        for rig in rigs:
            await rig.open_live("x")
        stats = partial(admin.stats, rigs[0].node, put("/"))
        assert summary(await stats()) == (3, 0, [("a", 1, 1), ("b", 2, 2)])
        network.deaf = {rig.node.tag for rig in rigs[1:]}
        assert summary(await stats()) == (1, 2, [("a", 1, 1)])
        assert network.elapsed == READ_SECONDS
        for rig in rigs[1:]:
            del network.workers[rig.node.tag]
        assert summary(await stats()) == (1, 0, [("a", 1, 1)])
        assert network.elapsed == READ_SECONDS


async def test_every_figure_of_the_cluster_is_in_the_metrics() -> None:
    async with nodes("a") as (_, (rig,)):
        text = render(rig.node.statistics()).decode()
        names = {family.name for family in text_string_to_metric_families(text)}
        assert {f"gateway_cluster_{f.name}" for f in fields(ClusterStatistics)} <= names
