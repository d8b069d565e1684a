"""The log of a long command, in a file that may be truncated or damaged."""

import pytest

from dinoviz.commands.resume_log import ResumeLog


@pytest.mark.parametrize("line", ["[", "null", "7", "[1, 2]", "[[], {}]", '["b"]', "[" * 100_000, '["b", {}, 1]'])
def test_entries_after_a_damaged_line_are_ignored(line, tmp_path):
    file = tmp_path / "log"
    with ResumeLog(file, {"of": "this"}) as log:
        log.add("a", {"n": 1})
    with file.open("a") as opened:
        opened.write(f'{line}\n["c", {{}}]\n')
    with ResumeLog(file, {"of": "this"}) as log:
        assert log.resumed
        assert log.get("a") == {"n": 1}
        assert log.get("c") is None
        log.add("d", {"n": 2})
    with ResumeLog(file, {"of": "this"}) as log:
        assert log.get("d") == {"n": 2}
