"""The gateway's figures in locust's web UI: a tab, and ``/gateway`` for programs."""

import json
from typing import Any

from flask import Response, request
from locust.web import WebUI

from stress.settlement import Settlement
from stress.tally import MEANINGS

KEY = "gateway"


def show(web_ui: WebUI, settlement: Settlement) -> None:
    """The tab has a row for each count, and one for the verdict."""
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Gateway", "key": KEY}],
        "extended_tables": [
            {
                "key": KEY,
                "structure": [
                    {"key": "name", "title": "Figure"},
                    {"key": "count", "title": "Count"},
                    {"key": "meaning", "title": "Meaning"},
                ],
            }
        ],
    }
    options: Any = web_ui.environment.parsed_options
    app: Any = web_ui.app
    base = options.web_base_path or ""

    @app.route(f"{base}/gateway")
    @web_ui.auth_required_if_enabled
    def gateway() -> dict[str, Any]:
        return figures(settlement)

    @app.after_request
    def extend(response: Response) -> Response:
        """locust's page asks for all it shows at one route."""
        if request.path == f"{base}/stats/requests" and response.is_json:
            stats = response.get_json()
            stats["extended_stats"] = [{"key": KEY, "data": rows(settlement)}]
            response.set_data(json.dumps(stats))
        return response


def figures(settlement: Settlement) -> dict[str, Any]:
    """The counts so far, and the verdict on the last run when there is one: whether all was right,
    how many events were lost, and what was wrong in words."""
    verdict = settlement.verdict
    told: dict[str, Any] = settlement.tally().counts()
    told["verdict"] = verdict and {
        "right": not verdict.defects,
        "lost": verdict.lost,
        "unjudged": verdict.unjudged,
        "defects": verdict.defects,
    }
    return told


def rows(settlement: Settlement) -> list[dict[str, object]]:
    verdict = settlement.verdict
    word, meaning = "", "when the run has been stopped, and its last events have come"
    if verdict is not None:
        word = "wrong" if verdict.defects else "right"
        meaning = " ".join(verdict.defects) or "nothing was lost, doubled or out of order"
    counts = settlement.tally().counts()
    return [
        {"name": "verdict", "count": word, "meaning": meaning},
        {"name": "lost", "count": verdict and verdict.lost, "meaning": "by the verdict"},
        *({"name": n, "count": counts[n], "meaning": MEANINGS[n]} for n in counts),
    ]
