"""grafana/rules.yml: each alert fires when it must, and only then, and the runbook knows it."""

import re
import subprocess
from collections.abc import Mapping
from typing import Any

import promql_parser as promql
import pytest
from process import environment
from watching import ALERTS, DASHBOARD, GRAFANA, PANELS, RECORDED, RULES, read_yaml, selectors

RUNBOOK = (GRAFANA / "RUNBOOK.md").read_text("utf-8")

ENTRIES = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK))
"""Of the runbook, by the alert that they are about."""

NAMES = {rule["alert"] for rule in ALERTS}

TESTS: list[dict[str, Any]] = read_yaml("rules_test.yml")["tests"]


def promtool(*arguments: str) -> str:
    """What it says when all is well."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=GRAFANA,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    said = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert f"{len(RULES)} rules found" in said


def test_the_rules_are_put_where_prometheus_looks_for_them() -> None:
    for name in read_yaml("prometheus.yml")["rule_files"]:
        assert f" >/etc/prometheus/{name}\n" in (GRAFANA / "README.md").read_text("utf-8")


def test_the_alerts_do_what_they_must() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_the_tests_take_the_groups_in_the_order_of_the_file() -> None:
    """promtool shuffles those without an order, and an alert's time with them."""
    groups = [group["name"] for group in read_yaml("rules.yml")["groups"]]
    assert read_yaml("rules_test.yml")["group_eval_order"] == groups


def fired(test: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The alerts that a test of rules_test.yml wants to fire, and their severities."""
    found = set()
    for one in test.get("promql_expr_test", ()):
        for sample in one["exp_samples"]:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
            if labels["alertstate"] == "firing":
                found.add((labels["alertname"], labels["severity"]))
    for one in test.get("alert_rule_test", ()):
        found |= {(one["alertname"], each["exp_labels"]["severity"]) for each in one["exp_alerts"]}
    return found


def silent(test: Mapping[str, Any]) -> bool:
    """Whether it wants silence at some time although all series are there."""
    expected = (
        *(one["exp_samples"] for one in test.get("promql_expr_test", ())),
        *(one["exp_alerts"] for one in test.get("alert_rule_test", ())),
    )
    return [] in expected


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']} {rule['labels']}")
def test_each_alert_is_seen_to_fire_and_not_to(rule: dict[str, Any]) -> None:
    """In a test that has its series, at one time and not at another."""
    both = (rule["alert"], rule["labels"]["severity"])
    tests = [test for test in TESTS if both in fired(test)]
    assert any(silent(test) or len(test["promql_expr_test"]) > 1 for test in tests)


def test_a_rolling_restart_has_the_series_of_every_alert_that_it_could_set_off() -> None:
    (roll,) = (test for test in TESTS if "rolling restart" in test["name"])
    assert fired(roll) == set()
    named = {re.match(r"\w+", each["series"])[0] for each in roll["input_series"]}  # type: ignore[index]
    wanted = {
        selector.name
        for rule in RULES
        if rule.get("alert")
        in {
            "GatewayBusDown",
            "GatewayBusLostHistory",
            "GatewayBusUnstable",
            "GatewayCapacityLost",
            "GatewayDrainStuck",
            "GatewayNodeDown",
            "GatewayNodeRestarting",
            "GatewayNotReady",
            "GatewayReadinessFlapping",
            "GatewayReconnectStorm",
            "GatewayUnavailable",
            "GatewayVersionsMixed",
            "GatewayWorkersRestarting",
        }
        for selector in selectors(rule["expr"])
    }
    assert {name for name in wanted if name not in RECORDED} <= named


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_each_rule_is_read_as_prometheus_reads_it(rule: dict[str, Any]) -> None:
    promql.parse(rule["expr"])
    for selector in selectors(rule["expr"]):
        assert ":" not in str(selector.name) or selector.name in RECORDED


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']} {rule['labels']}")
def test_each_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["summary"].endswith(".")
    assert told["description"].endswith(".")
    assert told["runbook_url"] == f"grafana/RUNBOOK.md#{rule['alert'].lower()}"
    severity = rule["labels"]["severity"]
    assert set(rule["labels"]) == {"severity"}
    assert severity in ("critical", "warning")
    assert f"*{severity}*" in ENTRIES[rule["alert"]].partition("- **")[0].lower()


def test_the_runbook_has_an_entry_for_each_alert_and_for_no_other() -> None:
    assert set(ENTRIES) == NAMES


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_each_entry_says_what_users_see_where_to_look_what_to_do_and_when_not_to(
    name: str,
) -> None:
    about, *points = re.split(r"(?m)^- ", ENTRIES[name])
    assert len(about.split()) > 8
    assert [re.match(r"\*\*([\w ]+)\*\*", point)[1] for point in points] == [  # type: ignore[index]
        "Users see",
        "First look",
        "Do",
        "Harmless",
    ]


def test_what_the_runbook_points_to_is_there() -> None:
    """Panels and rows by their titles, its own entries, and files beside it."""
    titles = {panel["title"] for panel in (*PANELS, *DASHBOARD["panels"])}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", RUNBOOK)) - {"Critical", "Warning"}
    assert len(named) > 25
    assert named <= titles, named - titles
    anchors = {name.lower() for name in ENTRIES}
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        file, _, anchor = target.partition("#")
        assert (GRAFANA / file).exists() if file else anchor in anchors, target


def test_what_the_readme_points_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (GRAFANA / "README.md").read_text("utf-8"))
    assert len(targets) > 5
    assert all((GRAFANA / target).exists() for target in targets)


def test_the_data_source_knows_how_often_nodes_are_scraped() -> None:
    """$__rate_interval is four times that."""
    (source,) = read_yaml("provisioning/datasources/prometheus.yml")["datasources"]
    scraped = read_yaml("prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    assert source["type"] == "prometheus"
    (provider,) = read_yaml("provisioning/dashboards/gateway.yml")["providers"]
    assert provider["type"] == "file"
