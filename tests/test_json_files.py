"""JSON files that anybody may have written."""

import math
import os

import pytest

from dinoviz.errors import DinovizError
from dinoviz.json_files import MAX_DEPTH, MAX_DIGITS, parse_json, read_json


class FileError(DinovizError):
    """Of the caller."""


@pytest.fixture
def read(tmp_path):
    def read(content: bytes | str, **options):
        file = tmp_path / "meta.json"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_json(file, FileError, **options)

    return read


def test_an_object_is_read_as_json_reads_it(read):
    assert read('{"a": [1, 2.5, null, true], "b": {"c": "ä\\ud83d\\ude00"}}') == {
        "a": [1, 2.5, None, True],
        "b": {"c": "ä😀"},
    }


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        (b"\xff\xfe\xfa", "JSON"),
        (b"\x00" * 100, "JSON"),
        ('{"a": 1} {"b": 2}', "JSON"),
        ("[1, 2]", "list"),
        ("null", "NoneType"),
        ('"text"', "str"),
        ("[" * 100_000 + "]" * 100_000, str(MAX_DEPTH)),
        ('{"a":' * 400 + "1" + "}" * 400, str(MAX_DEPTH)),
        ('{"a": ' + "9" * 400 + "}", "400"),
        ('{"a": ' + "9" * 5000 + "}", "5000"),
        ('{"a": 1e400}', "1e400"),
        ('{"a": [NaN]}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_refusals_name_the_file_and_the_reason(read, content, named):
    with pytest.raises(FileError, match=named) as refused:
        read(content)
    message = str(refused.value)
    assert message.startswith("meta.json")
    assert len(message) < 200
    assert "\n" not in message


def test_what_lies_at_the_bounds_is_read(read):
    assert read('{"a": ' + "9" * MAX_DIGITS + "}")["a"] == 10**MAX_DIGITS - 1
    assert read('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)


def test_what_is_not_finite_can_be_allowed(read):
    assert math.isnan(read('{"a": NaN}', finite=False)["a"])
    assert read('{"a": 1e400}', finite=False)["a"] == math.inf


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    file = tmp_path / "status.json"
    with file.open("wb") as opened:
        opened.truncate(10**12)  # 1 TB on paper
    with pytest.raises(FileError, match=r"0.5 MB"):
        read_json(file, FileError, max_bytes=500_000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "none", "/dev/zero"):
        with pytest.raises(FileError, match=r"not a file|missing"):
            read_json(path, FileError)


def test_a_text_is_called_by_the_name_it_is_given():
    with pytest.raises(FileError, match=r"^The header "):
        parse_json("[]", "The header", FileError)
