"""httpx-sse, as its documentation shows it; and with what its user adds."""

import time

import httpx
from httpx_sse import connect_sse
from telling import Tell, drive


def plain(url: str, tell: Tell) -> None:
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for sse in source.iter_sse():
            tell("event", type=sse.event, id=sse.id, data=sse.data)


def mended(url: str, tell: Tell) -> None:
    last, delay = "", 1.0
    with httpx.Client(timeout=httpx.Timeout(5, read=45)) as client:
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                with connect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code == 204:
                        return
                    source.response.raise_for_status()
                    for sse in source.iter_sse():
                        last = sse.id or last  # a refusal has none
                        delay = delay if sse.retry is None else sse.retry / 1000
                        if sse.event == "closed":
                            return
                        if sse.event != "keepalive":
                            tell("event", type=sse.event, id=sse.id, data=sse.data)
            except httpx.TransportError:
                pass
            time.sleep(delay)


drive(plain, mended)
