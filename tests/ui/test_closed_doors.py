"""Nobody reads a file that they did not upload, through any endpoint, public or private, local or on a public page."""

import base64
import io
import json
import math
import time
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from dinoviz.ui.access import Settings
from dinoviz.ui.door import MAX_BODY, hosts
from dinoviz.ui.guard import check_value, sendable
from tests.ui.closed_doors import FILE_INPUTS, SECRET, default_data, foreign_paths, serving, shapes
from training.runs import Run

NOT_UPLOADED = "was not uploaded in this session"


@pytest.fixture(scope="module", params=[False, True], ids=["local", "public"])
def served(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    with serving(home, Settings(public=request.param, runs_at_once=0)) as served:
        yield served


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A page with small bounds on uploads."""
    home = tmp_path_factory.mktemp("local")
    with serving(home, Settings(runs_at_once=0, temporary_bytes=2_000_000)) as served:
        yield served


def png(side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def endpoint(served, name: str) -> int:
    return next(number for number, fn in served.page.fns.items() if fn.name == name)


def test_no_endpoint_takes_a_path_that_was_not_uploaded(served, tmp_path):
    """All endpoints, each file input, each path, each way to write it; the answers do not tell what exists."""
    paths, tried = foreign_paths(tmp_path), 0
    for number, fn in served.page.fns.items():
        data = default_data(fn)
        for place, block in enumerate(fn.inputs):
            if not isinstance(block, FILE_INPUTS):
                continue
            # Each path in one shape, each shape with one path: all pairs at all endpoints would take minutes.
            pairs = [(path, "plain") for path in paths.values()] + [(paths["absolute"], shape) for shape in shapes("")]
            answers = set()
            for path, shape in pairs:
                value = shapes(path)[shape]
                sent = [*data[:place], [value] if shape == "plain" and is_many(block) else value, *data[place + 1 :]]
                answer = served.ask(number, sent)
                assert answer.status_code == 500, (fn.name, path, shape, answer.text[:300])
                assert SECRET not in answer.text
                assert path not in answer.text or shape == "text", (fn.name, path, answer.text)
                answers |= {answer.text} if shape == "plain" else set()
                tried += 1
            assert len(answers) == 1, (fn.name, answers)
            assert NOT_UPLOADED in answers.pop()
    assert tried > 40 * 13  # 44 endpoints take files at the time of writing


def is_many(block) -> bool:
    return getattr(block, "file_count", "single") != "single"


def test_a_path_hidden_in_any_other_input_is_refused_as_well(local, tmp_path):
    picture = foreign_paths(tmp_path)["absolute"]
    for number, fn in local.page.fns.items():
        data = default_data(fn)
        for place, block in enumerate(fn.inputs):
            if not block.stateful:
                value = {"path": picture} if place % 2 else [{"a": {"path": picture}}]
                answer = local.ask(number, [*data[:place], value, *data[place + 1 :]])
                assert answer.status_code == 500, (fn.name, block.label)
                assert picture not in answer.text
                assert json.loads(answer.text)["error"], (fn.name, block.label)


def test_files_on_the_disk_are_not_served(served, tmp_path):
    for path in foreign_paths(tmp_path).values():
        answer = served.client.get(f"/gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
        assert SECRET not in answer.text
    assert served.client.get("/gradio_api/proxy=http://127.0.0.1:9/x").status_code == 404


def test_an_upload_is_its_sessions_own(served):
    preview = endpoint(served, "preview")
    path = served.upload("mine.png", png())
    assert served.ask(preview, [{"path": path}], session="first").status_code == 200
    assert served.ask(preview, [{"path": path}], session="first").status_code == 200
    other = served.ask(preview, [{"path": path}], session="second")
    assert other.status_code == 500
    assert NOT_UPLOADED in other.text
    assert served.ask(preview, [{"path": path}], session=None).status_code == 500


def test_the_page_notices_that_a_session_ends(local):
    files = local.page.files
    with local.client.stream("GET", "/gradio_api/heartbeat/visitor") as beat:
        next(beat.iter_lines())
        assert files._connections == {"visitor": 1}
    deadline = time.monotonic() + 30
    while "visitor" not in files._left:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not files._connections


def test_a_client_without_a_session_uses_its_upload_again(served):
    preview, path = endpoint(served, "preview"), served.upload("free.png", png())
    for _ in range(2):
        assert served.ask(preview, [{"path": path}], session=None).status_code == 200


def test_the_same_content_uploaded_twice_is_two_files(served):
    """Gradio names uploads by their content: two people would share one, and could guess that of another."""
    first, second = served.upload("same.png", png()), served.upload("same.png", png())
    assert first != second
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_what_the_page_made_is_its_sessions_own(served):
    """An upload that browsers cannot show comes back as a PNG, which only that session can send again."""
    preview = endpoint(served, "preview")
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "TIFF")
    path = served.upload("deep.tif", file.getvalue())
    made = served.ask(preview, [{"path": path}], session="maker").json()["data"][0]["path"]
    assert made != path
    assert served.ask(preview, [{"path": made}], session="maker").status_code == 200
    assert served.ask(preview, [{"path": made}], session="another").status_code == 500


def test_examples_are_everybodys_and_lie_nowhere_else(served):
    """The page's configuration names no folder of this machine but the one of its temporary files."""
    config = json.dumps(served.client.get("/config").json())
    for folder in ("site-packages", str(Path.cwd()), str(Path.home())):
        assert folder not in config.replace(str(served.page.files.folder), ""), folder
    shown = next(c for c in served.page.blocks.values() if getattr(c, "elem_id", None) == "picture")
    example = shown.get_config()["value"]["path"]
    for session in ("first", "second"):
        assert served.ask(endpoint(served, "preview"), [{"path": example}], session=session).status_code == 200


def test_a_picture_in_the_request_itself_is_taken(served):
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    assert served.ask(endpoint(served, "preview"), [{"path": None, "url": url}]).status_code == 200
    damaged = served.ask(endpoint(served, "preview"), [{"path": None, "url": url + "!"}])
    assert "data URL is damaged" in damaged.text


WRONG = [None, True, -1, 1e308, math.nan, "x" * 100, "", [], [None], {}, {"a": 1}, [[1]], 10**400]


def test_a_malformed_value_gives_one_sentence_and_no_stack_trace(local, capfd):
    """One wrong value for each kind of input of each endpoint; `make test-all` sends all, to a public page as well."""
    seen = set()

    def values(number: int, place: int) -> list:
        kind = number, type(local.page.fns[number].inputs[place])
        first = kind not in seen
        seen.add(kind)
        return [WRONG[(number + 3 * place) % len(WRONG)]] if first else []

    assert not faults(local, capfd, values)


@pytest.mark.slow
def test_all_malformed_values_give_one_sentence(served, capfd):
    assert not faults(served, capfd, lambda *_: WRONG)


def faults(served, capfd, values) -> list[tuple]:
    """(endpoint, input, value, end of the log) of all that ended in a stack trace or without a word."""
    capfd.readouterr()
    bad = []
    for number, fn in served.page.fns.items():
        data = default_data(fn)
        for place, block in enumerate(fn.inputs):
            if block.stateful:
                continue
            for value in values(number, place):
                answer = served.ask(number, [*data[:place], value, *data[place + 1 :]])
                printed = "".join(capfd.readouterr())
                if "Traceback" in printed or is_vague(answer):
                    bad.append((fn.name, block.label, str(value)[:20], printed[-300:]))
    return bad


@pytest.mark.parametrize(
    ("block", "good", "bad"),
    [
        (gr.Textbox("CLS"), ["", "10, 20"], [None, 1, ["a"], {}]),
        (gr.Textbox(), [None, ""], [1, True]),
        (gr.Slider(0, 1, value=0.5), [0, 1, 0.5], [None, True, "1", math.nan, math.inf, [1]]),
        (gr.Number(), [None, 3, 1e300], ["3", math.nan, 10**400, False]),
        (gr.Checkbox(), [True, False], [None, 0, "true"]),
        (gr.Radio(["a"], value="a"), ["a"], [None, 1, ["a"]]),
        (gr.Dropdown(["a"], value="a"), ["a"], [None, 1, ["a"], {}]),
        (gr.Dropdown(["a"], multiselect=True), [None, [], ["a"]], ["a", [1], [None]]),
        (gr.CheckboxGroup(["a"]), [[], ["a"]], [None, "a", [1]]),
        (gr.File(), [None, {"path": "x"}], [{}, "x", [{"path": "x"}], 1]),
        (gr.File(file_count="multiple"), [None, [], [{"path": "x"}]], [["x"], [None], [{}], "x"]),
        (gr.Image(), [None, {"path": "x"}], [{}, "x", [{"path": "x"}]]),
        (gr.HTML(), [None, "{}"], [1, {}, []]),
    ],
    ids=lambda block: type(block).__name__ if isinstance(block, gr.components.Component) else None,
)
def test_values_are_of_the_type_that_the_component_sends(block, good, bad):
    for value in good:
        check_value(block, value)
    for value in bad:
        with pytest.raises(gr.Error):
            check_value(block, value)


def is_vague(answer: httpx.Response) -> bool:
    """A failure without a sentence."""
    return answer.status_code >= 400 and not json.loads(answer.text).get("error", json.loads(answer.text).get("detail"))


@pytest.mark.parametrize("data", [[], [1], [None] * 100, [[]] * 3])
def test_a_wrong_number_of_inputs_gives_one_sentence(served, capfd, data):
    capfd.readouterr()
    for number, fn in served.page.fns.items():
        if len(data) < len(fn.inputs):
            answer = served.ask(number, data)
            assert answer.status_code == 500
            assert str(len(fn.inputs)) in answer.json()["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("click", [None, {}, {"index": None}, {"index": [1]}, {"index": ["a", "b"], "value": 1}, 7])
def test_a_click_without_a_place_gives_one_sentence(served, capfd, click):
    capfd.readouterr()
    asked = 0
    for number, fn in served.page.fns.items():
        if "event" in fn.fn.__code__.co_varnames[: fn.fn.__code__.co_argcount] if fn.fn else False:
            answer = served.ask(number, default_data(fn), event_data=click)
            assert "click" in answer.json()["error"]
            asked += 1
    assert asked >= 4
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_request_that_is_no_json_or_too_deep_or_too_long_is_refused(served, capfd):
    capfd.readouterr()
    post = served.client.post
    kind = {"content-type": "application/json"}
    deep = "[" * 100_000 + "]" * 100_000
    for body in ('{"data": [', f'{{"data": {deep}}}', b"\xff\xfe", '{"data": [' + "9" * 6000 + "]}"):
        assert post("/gradio_api/run/encode", content=body, headers=kind).status_code == 400
    long = post("/gradio_api/run/encode", content=b"[" + b" " * MAX_BODY + b"]", headers=kind)
    assert long.status_code == 413
    assert "16 MB" in long.json()["detail"]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_name_that_is_no_utf8_does_not_keep_an_answer_from_being_sent():
    sent = sendable({"choices": [("odd-\udcff", "a"), ("grün", 1)], "value": None})
    assert sent == {"choices": [("odd-\\udcff", "a"), ("grün", 1)], "value": None}
    json.dumps(sent).encode()


def test_a_run_whose_name_is_no_utf8_does_not_break_the_list(tmp_path):
    with serving(tmp_path, Settings(runs_at_once=0)) as served:
        made = Run.create("odd", "pretrain", {})
        made.folder.rename(made.folder.with_name("odd-\udcff"))
        refresh = endpoint(served, "refresh")
        answer = served.ask(refresh, default_data(served.page.fns[refresh]))
        assert answer.status_code == 200, answer.text
        assert "odd-" in answer.text
        assert served.client.get("/config").status_code == 200


def test_another_host_name_is_refused(served):
    """A name of an attacker's that was made to point at this machine."""
    for name in ("evil.example", "evil.example:7860", "", "127.0.0.1.evil.example", "localhost.evil.example"):
        assert served.client.get("/config", headers={"host": name}).status_code == 421, name
    for name in ("localhost:1", "127.0.0.1", "LOCALHOST"):
        assert served.client.get("/config", headers={"host": name}).status_code == 200, name


def test_another_sites_page_cannot_write(served):
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        upload = served.client.post("/gradio_api/upload", files={"files": ("a.png", png())}, headers={"origin": origin})
        assert upload.status_code == 403, origin
        assert served.client.post("/gradio_api/run/encode", json={"data": []}, headers={"origin": origin}).is_error
    own = served.client.post("/gradio_api/upload", files={"files": ("a.png", png())}, headers={"origin": served.url})
    assert own.status_code == 200


def test_hosts_by_how_the_page_is_served(monkeypatch):
    here = hosts("127.0.0.1", on_space=False, shared=lambda: None)
    assert not here.allows("192.168.1.7:7860")
    lan = hosts("0.0.0.0", on_space=False, allowed=["dino.lab:443"], shared=lambda: "abc.gradio.live")
    assert all(map(lan.allows, ("192.168.1.7:7860", "[fe80::1]:7860", "dino.lab", "abc.gradio.live")))
    assert not lan.allows("evil.gradio.live")
    monkeypatch.setenv("SPACE_ID", "me/dino_viz")
    monkeypatch.setenv("SPACE_HOST", "me-dino-viz.hf.space")
    space = hosts("0.0.0.0", on_space=True, shared=lambda: None)
    assert space.allows("me-dino-viz.hf.space")
    assert not space.allows("you-dino-viz.hf.space")


def test_uploads_of_one_client_are_bounded(local):
    """Two megabytes in all; what does not fit is refused before it is read, and leaves nothing."""
    local.upload("first.png", b"x" * 1_500_000)
    before = sorted((local.page.files.folder / "uploads").iterdir())
    refused = local.client.post("/gradio_api/upload", files={"files": ("more.png", b"x" * 1_000_000)})
    assert refused.status_code == 413
    assert "2 MB" in refused.text
    assert sorted((local.page.files.folder / "uploads").iterdir()) == before


def test_an_upload_that_is_broken_off_leaves_nothing(local):
    before = sorted((local.page.files.folder / "uploads").iterdir())

    def half():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 50_000
        raise ConnectionError("the client goes away")

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "400000"}
    with httpx.Client(base_url=local.url) as client, pytest.raises(ConnectionError):
        client.post("/gradio_api/upload", content=half(), headers=headers)
    deadline = time.monotonic() + 20
    while sorted((local.page.files.folder / "uploads").iterdir()) != before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("headers", [{}, {"content-type": "multipart/form-data"}, {"content-type": "text/plain"}])
def test_an_upload_that_is_none_is_refused(local, headers):
    answer = local.client.post("/gradio_api/upload", content=b"nonsense", headers=headers)
    assert answer.status_code == 400
