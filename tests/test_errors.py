"""Errors are one line that a terminal, a log and a page can show, whatever name they quote."""

import pytest

from dinoviz.errors import DinovizError
from dinoviz.images import ImageError, open_image


@pytest.mark.parametrize(
    ("name", "shown"),
    [("two\nlines", r"two\nlines"), ("\x1b[2J", r"\x1b[2J"), ("\udcff", r"\udcff"), ("caf\xe9 🐈", "café 🐈")],
)
def test_a_quoted_name_commands_no_terminal(name, shown):
    assert str(DinovizError(f"{name}: no such file.")) == f"{shown}: no such file."


def test_a_file_with_a_line_end_in_its_name_is_refused_on_one_line(tmp_path):
    path = tmp_path / "two\nlines.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as refused:
        open_image(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_long_name_leaves_the_reason_to_be_read():
    text = str(DinovizError(f"{'x' * 200_000}: there is no such file."))
    assert len(text) < 1000
    assert text.endswith("there is no such file.")
