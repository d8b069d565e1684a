"""Runs on the page: which browser may see them, and their state in words, whatever their files hold."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dinoviz.ui import access
from dinoviz.ui.access import MOST_RUNS, opened, own, visible
from dinoviz.ui.train.run_list import MARKS, WORDS, duration, label, last_lines, status_html
from tests.training.tiny_runs import refused
from training.runs.run import STATES, Run, RunError

MARKUP = "<img src=x onerror=alert(1)>"
CHOOSE = "Choose a run first."  # the same, whatever is wrong
ME, YOU = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    """The folder of runs, as it is where the program is started in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DINOVIZ_RUNS", raising=False)
    return Path("runs")


def made(name: str, token: str | None = None, state: str = "finished", **fields) -> Run:
    run = Run.create(name, "pretrain", {"epochs": 1.0})
    run.set_status(state, **fields)
    if token is not None:
        own(run, token)
    return run


def names(token: str, public: bool = True) -> set[str]:
    return {run.name for run in visible(public, token)}


def test_on_a_public_page_each_browser_sees_its_own_runs():
    for name, token in (("mine", ME), ("yours", YOU), ("nobodys", None)):
        made(name, token)
    assert (names(ME), names(YOU)) == ({"mine"}, {"yours"})
    assert names(ME, public=False) == names("", public=False) == {"mine", "yours", "nobodys"}


@pytest.mark.parametrize("token", ["", None])
def test_browsers_without_a_token_own_nothing(token):
    made("a", "")
    made("b")
    assert names(token) == set()
    for name in "ab":
        assert refused(RunError, opened, f"runs/{name}", True, token) == CHOOSE
        assert opened(f"runs/{name}", False, token).name == name


def test_the_token_is_not_stored(runs):
    made("mine", ME)
    for file in runs.rglob("*"):
        assert file.is_dir() or ME not in file.read_text()


def test_a_damaged_token_file_is_no_ones(runs):
    made("a", ME)
    (runs / "a" / "owner.txt").write_bytes(b"\xff\xfe")
    assert names(ME) == set()
    (runs / "a" / "owner.txt").unlink()
    (runs / "a" / "owner.txt").mkdir()
    assert names(ME) == set()


def test_ones_own_run_is_opened():
    made("mine", ME)
    assert opened("runs/mine", True, ME).folder == Path("runs/mine")


CRAFTED = (
    *("runs/yours", "./runs/yours", "runs//yours", "runs/yours/", "runs/mine/../yours", "runs/../runs/yours"),
    *("mine", "yours", "runs", "runs/", ".", "..", "/", "", None, "runs/mine/snapshots", "runs/yours/snapshots/step-1"),
    *("runs/mine/snapshots/step-1/../../../yours", "runs/mine\0", "runs/" + "x" * 5000, "/etc", "~", "runs/outside"),
)


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("folder", [*CRAFTED, "ABSOLUTE"])
def test_no_path_opens_the_run_of_another(folder, public, tmp_path):
    made("mine", ME)
    made("yours", YOU)
    if folder == "ABSOLUTE":
        folder = str(tmp_path / "runs" / "yours")
    if public and folder == "mine":  # its key there
        assert opened(folder, public, ME).name == "mine"
        return
    mine_to_open = not public and folder and folder != "runs/mine/../yours" and Path(folder) == Path("runs/yours")
    if mine_to_open:
        assert opened(folder, public, ME).name == "yours"
    else:
        assert refused(RunError, opened, folder, public, ME) == CHOOSE


def test_with_the_runs_elsewhere_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "else"))
    made("mine", ME)
    made("yours", YOU)
    assert names(ME) == {"mine"}
    assert opened(str(tmp_path / "else" / "mine"), True, ME).name == "mine"
    for folder in ("runs/mine", tmp_path / "else" / "yours", tmp_path / "else" / "mine" / ".." / "yours", "else/yours"):
        refused(RunError, opened, str(folder), True, ME)


def test_a_removed_run_is_refused(runs):
    made("mine", ME)
    shutil.rmtree(runs / "mine")
    refused(RunError, opened, "runs/mine", True, ME)


def test_of_many_runs_the_newest_are_listed(monkeypatch):
    monkeypatch.setattr(access, "MOST_RUNS", 3)
    for i in range(5):
        run = made(f"r{i}", ME)
        os.utime(run.folder / "config.json", (i, i))
    made("yours", YOU)
    assert [run.name for run in visible(True, ME)] == ["r4", "r3", "r2"]
    assert MOST_RUNS >= 20


@pytest.mark.parametrize("state", [*STATES, "died", "unknown", "nonsense", None, 3])
def test_each_state_has_its_words(state, runs):
    run = made("a", state="running" if state not in STATES else state, step=5, steps=10, message="text")
    if state == "died":
        status = json.loads((runs / "a" / "status.json").read_text())
        (runs / "a" / "status.json").write_text(json.dumps({**status, "pid": 2**22 + 1}))
    elif state == "unknown":
        (runs / "a" / "status.json").write_text("{")
    elif state not in STATES:
        (runs / "a" / "status.json").write_text(json.dumps({"state": state}))
    text, marked = status_html(run, ()), label(run)
    assert f"<b>a</b> {WORDS.get(state, WORDS['unknown'])}" in text
    assert ("dv-busy" in text) == (state in ("starting", "running"))
    read = state in (*STATES, "died")
    assert marked.startswith(MARKS.get(state, "✗") + (" a (pretrain, " if read else " a (cannot be read: status.json"))
    assert "died" not in marked


def test_the_status_of_an_active_run():
    run = made("a", state="running", step=1200, steps=3400, eta=500.0)
    for step in range(1, 4):
        run.add_metrics({"step": step, "loss": 4 - step, "speed": 17.7, "knn": 0.5 if step == 2 else None, "x": "text"})
    text = status_html(run, ())
    assert f"{WORDS['running']}: step 1,200 of 3,400, about 8 min left." in text
    assert '<progress value="1200" max="3400" aria-label="progress"></progress>' in text
    assert "loss 1.000 · k-NN 50.0% · 18 images a second" in text
    run.request_stop()
    assert status_html(run, ()) != text


def test_a_message_is_an_alarm_during_training_only():
    assert "dv-error" not in status_html(made("a", state="running", message="reading the images"), ())
    assert '<span class="dv-error">The teacher collapsed.' in status_html(
        made("b", state="running", step=5, steps=9, message="The teacher collapsed."), ()
    )


def test_the_place_in_the_queue():
    run = made("b", state="queued")
    assert f"{WORDS['queued']}, next" in status_html(run, ["b"])
    assert f"{WORDS['queued']}, 1 before it" in status_html(run, ["a", "b"])


def test_a_failed_run_shows_its_message_and_its_log():
    run = made("a", state="failed", message=f"Broken: {MARKUP}.")
    for i in range(30):
        run.log(f"line {i} {MARKUP}")
    (run.folder / "output.txt").write_bytes(b"first\n" * 9 + b"printed \xff last\n")
    text = status_html(run, ())
    assert "Broken: &lt;img" in text
    assert "line 29 &lt;img" in text
    assert "line 21 " not in text
    assert "printed" not in text  # it is below, with the whole log
    assert "Resume" in text
    assert "<img" not in text
    assert last_lines(run, 3).splitlines()[-1] == "printed \ufffd last"
    assert len(last_lines(run, 200).splitlines()) == 40


def test_a_run_without_a_log_has_no_lines():
    assert last_lines(made("a"), 5) == ""


def test_a_run_name_is_escaped(runs):
    made("a")
    run = Run((runs / "a").rename(runs / MARKUP))
    assert "<img" not in status_html(run, ())
    assert "&lt;img" in status_html(run, ())
    assert MARKUP in label(run)  # for a list of choices, which shows text


def test_damaged_runs_do_not_hide_the_others(runs):
    made("good")
    for name, content in (("cut", b'{"kind": "pre'), ("odd", b"[]"), ("kindless", b"{}"), ("binary", b"\xff\0")):
        run = made(name)
        (run.folder / "config.json").write_bytes(content)
        (run.folder / "metrics.jsonl").write_bytes(b'{"loss": 1}\n\xff\n{"lo')
    found = visible(False, "")
    assert {run.name for run in found} == {"good", "cut", "odd", "kindless", "binary"}
    for run in found:
        assert ("cannot be read: config.json" in label(run)) == (run.name != "good")
        assert run.name in status_html(run, ())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (172_799, "48.0 h"),
     (172_800, "2.0 days"), (1e9, "11574.1 days")],
)  # fmt: skip
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
