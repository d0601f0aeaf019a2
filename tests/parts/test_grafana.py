"""The Grafana dashboard asks for what the collector exports: all of it, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests import ROOT
from wspool import WebsocketConnectionPool

pytest.importorskip("prometheus_client", reason="the extra 'prometheus' is not installed")

from wspool.prometheus import PoolCollector

pytestmark = pytest.mark.once

FILE = ROOT / "examples" / "grafana_dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
TARGETS = [pytest.param(t, id=f"{p['title']} {t['refId']}") for p in PANELS for t in p["targets"]]


def exported() -> dict[str, set[str]]:
    """Return the labels of each metric that a pool has from the start."""
    pool = WebsocketConnectionPool(uri="ws://localhost/")
    families = PoolCollector(pool).collect()
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def asked_for(expr: str) -> set[str]:
    return set(re.findall(r"\bwspool_\w+", expr))


def test_every_exported_metric_is_shown_and_every_metric_shown_exists() -> None:
    shown = {name for panel in PANELS for t in panel["targets"] for name in asked_for(t["expr"])}
    assert shown == set(exported())


@pytest.mark.parametrize("target", TARGETS)
def test_an_expression_uses_labels_that_its_metrics_have(target: dict[str, Any]) -> None:
    """So do the groups and the legend; and each metric is narrowed to the pools chosen."""
    expr, metrics = target["expr"], exported()
    is_share = "histogram_quantile" in expr
    assert is_share == ("_bucket" in expr) == (", le)" in expr)
    grouped = {name for group in re.findall(r"by \(([^)]*)\)", expr) for name in group.split(", ")}
    legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    assert legend <= grouped
    assert grouped <= set.union(*(metrics[name] for name in asked_for(expr)))
    assert len(re.findall(r"\bwspool_", expr)) == expr.count('{pool=~"$pool"}') > 0


@pytest.mark.parametrize("target", TARGETS)
def test_totals_are_shown_as_rates_and_gauges_as_they_are(target: dict[str, Any]) -> None:
    for rate, name in re.findall(r"(rate\()?(wspool_\w+)", target["expr"]):
        assert bool(rate) == (name.endswith("_total") or "_duration_" in name), name
    assert target["expr"].count("[$__rate_interval]") == target["expr"].count("rate(wspool_")
    for left, right in ("()", "{}", "[]"):
        assert target["expr"].count(left) == target["expr"].count(right)


def test_the_data_source_and_the_pool_can_be_chosen() -> None:
    """It can be imported anywhere: each panel and target takes the data source chosen."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "pool"}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    query = re.fullmatch(r"label_values\((\w+), pool\)", variables["pool"]["query"]["query"])
    assert query
    assert query[1] in exported()
    targets = [target for panel in PANELS for target in panel["targets"]]
    for part in (variables["pool"], *PANELS, *targets):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_each_panel_has_a_place_a_unit_and_words() -> None:
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS}
    assert len(places) == len(PANELS) == len({panel["id"] for panel in PANELS})
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
