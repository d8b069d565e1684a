"""What the page's configuration holds, which each load of the page copies and sends."""

import functools
import json

import pytest

from dinoviz.ui import build
from dinoviz.ui.access import Settings
from dinoviz.ui.workbench import Workbench

DRAWN = (
    "attention-photo", "attention-map", "attention-heads", "attention-figure", "pca-map", "pca-scatter", "pca-variance",
    "pca-joint", "segment-reference", "segment-target", "depth-map", "depth-cloud", "depth-histogram", "compare-a",
    "compare-b", "compare-slider",
)  # fmt: skip
CLICKS = {"select", "click", "change"}  # change: of the field that the arrow keys write to


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOVIZ_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(Workbench, "warm_up", lambda *_: None)  # a network at work when the process ends aborts it
        yield build(Settings()).get_config_file()


def test_no_event_of_a_component_is_in_its_properties(config):
    """An event holds its component, and so the whole app: copying that took seconds for each load."""
    found = [
        (component["type"], name)
        for component in config["components"]
        for name, value in component["props"].items()
        if isinstance(value, functools.partial)
    ]
    assert not found


def test_the_page_is_small_enough_to_be_sent_at_each_load(config):
    assert len(json.dumps(config, default=str)) < 1.5e6


def test_handlers_of_the_page_are_closed_to_clients(config):
    """Only what has a name of its own is an endpoint; the names are listed in the browser's tests."""
    named = {d["api_name"] for d in config["dependencies"] if d["api_visibility"] == "public"}
    assert len(named) == len([d for d in config["dependencies"] if d["api_visibility"] == "public"])
    assert not {name for name in named if name.startswith(("look_at", "start", "refresh", "push", "upload"))}


def test_what_is_asked_while_an_answer_is_under_way_is_not_forgotten(config):
    """Only a button's second press and a timer may be; a link of a chain would leave the page at the older answer."""
    forgetful = [d for d in config["dependencies"] if d["trigger_mode"] == "once" and d["backend_fn"]]
    assert forgetful
    assert {event for d in forgetful for _, event in d["targets"]} <= {"click", "tick", "load"}
    assert not [d["api_name"] for d in forgetful if d["trigger_after"] is not None]


def test_what_is_seen_is_drawn_by_one_handler(config):
    """Of two that answer at the same time the older one may come last."""
    seen = {
        component["id"]: component["props"].get("elem_id")
        for component in config["components"]
        if component["props"].get("elem_id") in DRAWN
    }
    assert sorted(seen.values()) == sorted(DRAWN)
    for number, name in seen.items():
        writers = [d for d in config["dependencies"] if number in d["outputs"] and d["api_visibility"] == "private"]
        assert len([d for d in writers if d["trigger_mode"] == "always_last"]) == 1, name
        # The others answer a click, each for itself, and have the tab drawn once more where that may be needed.
        assert {event for d in writers if d["trigger_mode"] == "multiple" for _, event in d["targets"]} <= CLICKS, name


def test_a_state_that_is_listened_to_is_in_no_tab(config):
    """In a tab that was not opened yet, the first answer counts as a change: handlers would run that nobody called."""
    types = {component["id"]: component["type"] for component in config["components"]}
    listened = {target for d in config["dependencies"] for target, event in d["targets"] if event == "change"}

    def below(node, in_tab: bool):
        in_tab = in_tab or types[node["id"]] == "tabitem"
        if in_tab and types[node["id"]] == "state":
            yield node["id"]
        for child in node.get("children", ()):
            yield from below(child, in_tab)

    found = {state for top in config["layout"]["children"] for state in below(top, False)}
    assert found, "states that nobody listens to may be anywhere"
    assert not found & listened
