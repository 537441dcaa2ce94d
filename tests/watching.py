"""What grafana/ holds, as tests see it: the dashboard, the rules, and every query of both."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

GRAFANA = Path(__file__).parent.parent / "grafana"

DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
ANNOTATIONS = [one for one in DASHBOARD["annotations"]["list"] if "builtIn" not in one]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((GRAFANA / name).read_text("utf-8"))


RULES: list[dict[str, Any]] = [
    rule for group in read_yaml("rules.yml")["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


class Query(NamedTuple):
    where: str
    expression: str


DURATIONS = {"$__rate_interval": "1m", "$__range": "1m"}

CHOICES = {"$job": "(gateway|other)", "$instance": "(127.0.0.1:.*|other)", "$class": ".*"}
"""What Grafana puts in for variables: of several values, and of all that there are."""


def of_dashboard() -> Iterator[Query]:
    """Every query of the dashboard, as it is written there."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield Query(f"{panel['id']} {panel['title']} {target['refId']}", target["expr"])
    for annotation in ANNOTATIONS:
        yield Query(f"annotation {annotation['name']}", annotation["expr"])
    for variable in VARIABLES:
        if variable["type"] == "query":
            called = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert called is not None, variable["name"]
            yield Query(f"variable {variable['name']}", f"count by ({called[2]}) ({called[1]})")


def of_rules() -> Iterator[Query]:
    for rule in RULES:
        yield Query(rule.get("record") or rule["alert"], rule["expr"])


def put(values: Mapping[str, str], expression: str) -> str:
    """``expression`` with ``values`` for the variables that they are of."""
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression


COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
SETS = {"and", "or", "unless"}


def operands(expression: Any) -> Iterator[Any]:
    """What has a value at all times: of a comparison, which is empty where all is well, its sides;
    and whatever is there or absent. Numbers are none."""
    match expression:
        case promql.ParenExpr():
            yield from operands(expression.expr)
        case promql.BinaryExpr() if str(expression.op) in COMPARISONS | SETS:
            yield from operands(expression.lhs)
            yield from operands(expression.rhs)
        case promql.Call() if expression.func.name == "absent":
            yield from operands(expression.args[0])
        case promql.AggregateExpr() if _may_be_empty(expression.expr):
            yield from operands(expression.expr)
        case promql.NumberLiteral():
            return
        case _:
            yield expression


def _may_be_empty(expression: Any) -> bool:
    while isinstance(expression, promql.ParenExpr):
        expression = expression.expr
    return isinstance(expression, promql.BinaryExpr) and str(expression.op) in COMPARISONS | SETS


def selectors(expression: str) -> list[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)

    promql.walk(promql.parse(expression), visit)
    return found
