"""What a long command has done, by a file that may have been cut or damaged."""

import pytest

from dinoviz.commands.resume_log import Journal


@pytest.mark.parametrize("line", ["[", "null", "7", "[1, 2]", "[[], {}]", '["b"]', "[" * 100_000, '["b", {}, 1]'])
def test_what_comes_after_a_damaged_line_is_forgotten(line, tmp_path):
    file = tmp_path / "journal"
    with Journal(file, {"of": "this"}) as journal:
        journal.add("a", {"n": 1})
    with file.open("a") as opened:
        opened.write(f'{line}\n["c", {{}}]\n')
    with Journal(file, {"of": "this"}) as journal:
        assert journal.resumed
        assert journal.get("a") == {"n": 1}
        assert journal.get("c") is None
        journal.add("d", {"n": 2})
    with Journal(file, {"of": "this"}) as journal:
        assert journal.get("d") == {"n": 2}
