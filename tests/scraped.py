"""What a node's /metrics says, to be looked up by name and labels."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from running import Gateway, request

from gateway.metrics import MEDIA_TYPE

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(gateway: Gateway) -> Samples:
    response = await gateway.ask(request("GET", "/metrics"))
    assert (response.status, response.header("content-type")) == (200, MEDIA_TYPE)
    return samples(response.body.decode())


def value(of: Samples, name: str, **labels: str) -> float:
    """The sum over all further labels; there must be one sample at least."""
    found = [
        number
        for (each, has), number in of.items()
        if each == f"gateway_{name}" and has >= labels.items()
    ]
    assert found, (name, labels)
    return sum(found)
