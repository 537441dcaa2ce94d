"""What is written about token streams is what the code tells."""

import re

from documents import REFERENCE, ROOT

from gateway.relay.events import FAILURES, REASONS, Normal
from gateway.relay.story import Story, snapshot_json

TYPES = (ROOT / "gateway/static/client.d.ts").read_text("utf-8")

TOLD = {each.type: list(each.__struct_encode_fields__) for each in Normal.__subclasses__()}
TOLD["snapshot"] = list(snapshot_json(Story()))
"""The members of each event's data."""


def rows_of(name: str) -> list[list[str]]:
    """The cells of the table with that mark, without its head."""
    inside = REFERENCE.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]
    return [line.strip("| ").split(" | ") for line in inside.splitlines()[2:]]


def test_the_table_of_events_has_each_with_all_its_members() -> None:
    listed = {}
    for kind, data in rows_of("events"):
        (members, *_) = re.findall(r"`\{(.*?)\}`", data)
        listed[kind.strip("`")] = re.findall(r'"(\w+)"', members)
    assert listed == TOLD


def test_every_reason_of_ours_is_told_where_complete_is() -> None:
    (row,) = [data for kind, data in rows_of("events") if kind == "`complete`"]
    listed = row.partition("`reason` is ")[2].partition(", or as the vendor has it")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(REASONS)


def test_the_table_of_codes_is_that_of_the_code() -> None:
    assert [told[:3] for told in rows_of("codes")] == [
        [f"`{code}`", kind.message, "yes" if kind.retryable else "no"]
        for code, kind in FAILURES.items()
    ]


def test_the_types_of_the_browsers_client_have_the_same_events_and_members() -> None:
    inside = TYPES.partition("export interface TokenStreamEvents {")[2].partition("\n}\n")[0]
    inside = re.sub(r"/\*.*?\*/", "", inside, flags=re.DOTALL)
    tool_use = TYPES.partition("export interface ToolUse {")[2].partition("\n}\n")[0]
    inside = inside.replace("tool_use: ToolUse;", f"tool_use: {{{tool_use}}};")
    inside = re.sub(r"(usage: )\{.*?\}", r"\1", inside)
    listed = {
        kind: re.findall(r"(\w+): ", members)
        for kind, members in re.findall(r"^  (\w+): \{(.*?)\};$", inside, re.DOTALL | re.MULTILINE)
    }
    assert listed == TOLD
