"""The statistics of several workers as those of one node. Pure.

1. Numbers are summed and tables of numbers by their keys; what is an exception is named below.
2. What a worker counted outlives it, what it held does not: `counted` keeps the one and drops the
   other, so that no counter of a node ever goes down.
3. Channels are summed too: one with clients at two workers counts twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from gateway.admission import AdmissionStatistics
from gateway.auth import AuthStatistics
from gateway.budget import MemoryStatistics
from gateway.bus import BusStatistics, LinkStatistics
from gateway.cluster import ClusterStatistics
from gateway.histogram import Distribution, added, total
from gateway.hub import HubStatistics
from gateway.ledger import LedgerStatistics
from gateway.node import NodeStatistics
from gateway.process import ProcessStatistics
from gateway.relay.registry import RegistryStatistics
from gateway.relay.relays import RelayStatistics

GAUGES: Mapping[type, frozenset[str]] = {
    NodeStatistics: frozenset(
        {"uptime_seconds", "max_clients", "workers", "certificate_expires"},
    ),
    HubStatistics: frozenset(
        {
            "clients",
            "channels",
            "subscriptions",
            "behind",
            "behind_longest",
            "replaying",
            "queued_frames",
            "queued_bytes",
            "deepest_frames",
            "pending_frames",
            "pending_bytes",
        }
    ),
    BusStatistics: frozenset({"channels", "history_bytes", "dedupe_entries"}),
    LinkStatistics: frozenset({"up", "subscriptions", "proof_age", "clock_skew"}),
    AuthStatistics: frozenset({"tokens_remembered"}),
    ClusterStatistics: frozenset({"waiting", "queued"}),
    LedgerStatistics: frozenset({"leases", "releases", "buckets", "revocations"}),
    AdmissionStatistics: frozenset({"waiting", "addresses", "paced", "longest_wait"}),
    MemoryStatistics: frozenset({"bytes", "max_bytes"}),
    ProcessStatistics: frozenset({"resident_bytes", "open_fds", "max_fds", "tasks"}),
    RelayStatistics: frozenset({"running", "waiting_events", "copied_bytes"}),
    RegistryStatistics: frozenset({"records", "held"}),
}
"""What a worker holds at the moment. All other numbers count."""

GREATEST = frozenset(
    {
        "uptime_seconds",
        "revocations",
        "longest_wait",
        "behind_longest",
        "deepest_frames",
        "proof_age",
    }
)
WIDEST = frozenset({"clock_skew"})
EARLIEST = frozenset({"certificate_expires"})
LEAST = frozenset({"up", "full", "cut_off", "draining"})
"""Of these the greatest, or the furthest from 0, or the least but 0, or the least, is the node's:
its links are up while those of all workers are, and it is full, cut off or draining when all of
them are."""

Statistics = TypeVar("Statistics")


def merge(parts: Sequence[NodeStatistics]) -> NodeStatistics:
    """The statistics of the node of ``parts``, of which there is one at least."""
    return _merged(parts)


def counted(of: NodeStatistics) -> NodeStatistics:
    """What a worker has counted, without what it held."""
    return _counted(of)


def accepting_no_more(of: NodeStatistics) -> NodeStatistics:
    """What a worker counts that another one has replaced and that still has clients.

    They are the node's, but whether it takes more of them is not for this worker to say.
    """
    return replace(of, draining=True, full=True, cut_off=True, max_clients=0)


def _merged(parts: Sequence[Statistics]) -> Statistics:
    kind = type(parts[0])
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: _value(name, [getattr(part, name) for part in parts]) for name in names})


def _value(name: str, values: list[Any]) -> Any:
    first = values[0]
    if name in GREATEST:
        return max(values)
    if name in WIDEST:
        return max(values, key=abs)
    if name in EARLIEST:
        return min(filter(None, values), default=0.0)
    if name in LEAST:
        return min(values)
    if isinstance(first, str):
        return first
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _value("", [each[key] for each in values if key in each]) for key in keys}
    if isinstance(first, Distribution):
        return added(values)
    if is_dataclass(first):
        return _merged(values)
    return total(values) if isinstance(first, float) else sum(values)


def _counted(of: Statistics) -> Statistics:
    gauges = GAUGES.get(type(of), frozenset())
    kept: dict[str, Any] = {}
    for field in fields(of):  # type: ignore[arg-type]  # a dataclass
        value = getattr(of, field.name)
        if field.name in LEAST:
            kept[field.name] = type(value)(1)  # no say
        elif field.name in gauges:
            kept[field.name] = type(value)()
        else:
            kept[field.name] = _counted_value(value)
    return type(of)(**kept)


def _counted_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _counted_value(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, Distribution):
        return _counted(value)
    return value
