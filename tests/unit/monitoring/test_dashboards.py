"""The two dashboards as Grafana gets them: what stands first, and that one can read it."""

from pathlib import Path
from typing import Any

import pytest
from support.monitoring import DASHBOARDS, dashboard, panels

MAIN, PERFORMANCE = DASHBOARDS

SECTIONS = {
    MAIN: ["Connections", "High-level metrics", "Status of services"],
    PERFORMANCE: ["Communication with services", "Queues", "Nodes"],
}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_row_for_each_section_of_the_users_document_and_connections_first(path: Path):
    shown = dashboard(path)["panels"]
    assert [panel["title"] for panel in shown if panel["type"] == "row"] == SECTIONS[path]
    assert path != MAIN or shown[1]["title"] == "Live connections"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_tenant_agent_and_node_can_be_chosen_and_narrow_the_queries(path: Path):
    shown = dashboard(path)
    variables = {each["name"]: each for each in shown["templating"]["list"]}
    assert list(variables) == ["datasource", "tenant", "agent", "instance"]
    expressions = [target["expr"] for panel in panels(shown) for target in panel["targets"]]
    for name in ("tenant", "agent", "instance"):
        assert variables[name]["includeAll"]
        assert any(f'=~"${name}"' in expression for expression in expressions)
    assert all("$instance" in expression for expression in expressions)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_each_panel_says_what_it_shows_and_has_its_own_place(path: Path):
    taken: dict[tuple[int, int], str] = {}
    shown = dashboard(path)
    for panel in panels(shown):
        title, defaults = panel["title"], panel["fieldConfig"]["defaults"]
        assert panel["description"].endswith("."), title
        assert defaults["unit"], title
        assert panel["datasource"]["uid"] == "${datasource}", title
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), title
        for place in _places(panel):
            assert place not in taken, f"{title} lies on {taken[place]}"
            taken[place] = title
    titles = [panel["title"] for panel in panels(shown)]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in panels(shown)}) == len(titles)
    assert max(across for across, _ in taken) < 24


def _places(panel: dict[str, Any]) -> list[tuple[int, int]]:
    at = panel["gridPos"]
    return [
        (at.get("x", 0) + across, at.get("y", 0) + down)
        for across in range(at["w"])
        for down in range(at["h"])
    ]
