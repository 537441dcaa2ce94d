"""sseclient-py over requests, as its documentation shows it; and with what its user adds."""

import time

import requests
import sseclient
from telling import Tell, drive


def plain(url: str, tell: Tell) -> None:
    response = requests.get(url, stream=True)
    for event in sseclient.SSEClient(response).events():  # type: ignore[arg-type]
        tell("event", type=event.event, id=event.id or "", data=event.data)


def mended(url: str, tell: Tell) -> None:
    last, delay = "", 1.0
    while True:
        headers = {"Accept": "text/event-stream"}
        if last:
            headers["Last-Event-ID"] = last
        try:
            response = requests.get(url, stream=True, headers=headers, timeout=(5, 45))
            if response.status_code == 204:
                return
            response.raise_for_status()
            for event in sseclient.SSEClient(response.iter_content(None)).events():
                last = event.id or last
                delay = int(event.retry) / 1000 if event.retry else delay
                tell("event", type=event.event, id=event.id or "", data=event.data)
                if event.event == "closed":
                    return
        except requests.RequestException:
            pass
        time.sleep(delay)


drive(plain, mended)
