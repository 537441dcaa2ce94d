"""curl, whose output is read as the standard says; and in a loop, with what is to be added."""

import subprocess
import time

from telling import Tell, drive


def curl(url: str, tell: Tell, *options: str) -> tuple[str, dict[str, str]]:
    """Run it to its end; the status, and the last ``id`` and ``retry`` of whole blocks."""
    status = ""
    last: dict[str, str] = {}
    block: dict[str, str] = {}
    command = ["curl", "-sSN", "-w", ": %{http_code}\n", *options, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            name, _, value = line.decode().removesuffix("\n").partition(":")
            value = value.removeprefix(" ")
            if line.startswith(b": "):
                status = value
            elif name:
                block[name] = f"{block[name]}\n{value}" if name in block else value
            else:
                last |= {name: block[name] for name in ("id", "retry") if name in block}
                if "data" in block:
                    type, id = block.get("event", "message"), block.get("id", "")
                    tell("event", type=type, id=id, data=block.get("data", ""))
                block = {}
    return status, last


def plain(url: str, tell: Tell) -> None:
    curl(url, tell)


def mended(url: str, tell: Tell) -> None:
    last = {"id": "", "retry": "1000"}
    while not last["id"].endswith(".closed"):
        headers = ["-H", "Accept: text/event-stream"]
        if last["id"]:
            headers += ["-H", f"Last-Event-ID: {last['id']}"]
        status, told = curl(url, tell, *headers)
        if status == "204":
            return
        last |= told
        time.sleep(int(last["retry"]) / 1000)


drive(plain, mended)
