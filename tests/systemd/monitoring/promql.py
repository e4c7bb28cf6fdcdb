"""What the alert rules and the dashboard ask for: their queries, and the metrics and labels in them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MONITORING = Path(__file__).parents[3] / "systemd" / "monitoring"
RULES, DASHBOARD = MONITORING / "visaged.rules.yml", MONITORING / "visaged.dashboard.json"

_WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset"}
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\{([^}]*)\}")
_NAME = re.compile(r"(?<![\w.$])[a-zA-Z_:][\w:]*(?!\s*\()\b(?!\s*\()")


def rule_queries() -> dict[str, str]:
    """Return the query of each alert by its name."""
    text = RULES.read_text()
    names = re.findall(r"- alert: (\w+)$", text, re.MULTILINE)
    return dict(zip(names, re.findall(r"^ +expr: (.+)$", text, re.MULTILINE), strict=True))


def dashboard_queries() -> dict[str, str]:
    """Return the queries of all panels by `panel/refId`, and those of the variables by their name."""
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    queries = {
        f"{panel['title']}/{target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["query"].removeprefix("label_values(").removesuffix(")").split(", ")
            queries[variable["name"]] = f"count by ({label}) ({metric})"
    return queries


def metrics_in(query: str) -> set[str]:
    """Return the names of all metrics that a PromQL query reads."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b\d+[smhd]\b', "", _GROUPED.sub(" ", query))
    return {name for name in _NAME.findall(bare) if name not in _WORDS}


def labels_in(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the labels that are selected, with their metric; and those grouped by, with "" for it."""
    for metric, selector in _SELECTOR.findall(query):
        yield metric, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', "", selector)))
    for grouped in _GROUPED.findall(query):
        yield "", {label.strip() for label in grouped.split(",") if label.strip()}
