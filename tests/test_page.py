"""What the page's configuration holds, which each load of the page copies and sends."""

import functools
import json

import pytest

from dinoviz.ui import build
from dinoviz.ui.workbench import Settings, Workbench


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
