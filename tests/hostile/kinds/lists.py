"""Lists of pictures to train on, .csv and .txt, that name what they should not or are no lists."""

from __future__ import annotations

import os

from tests.hostile.generate import Corpus, picture
from tests.hostile.kinds.images import encoded


def write(corpus: Corpus) -> None:
    for number in range(6):
        corpus.path(f"{number}.png").write_bytes(encoded(picture(48, 36), "png"))
    os.mkfifo(corpus.path("fifo.png"))
    labelled = "".join(f"{number}.png,{'cat' if number % 2 else 'dog'}\n" for number in range(6))
    plain = "".join(f"{number}.png\n" for number in range(6))
    for name, text, expected in (
        ("good.csv", labelled, "right"),
        ("header.csv", f"path,label\n{labelled}", "right"),
        ("quoted.csv", labelled.replace("cat", '"cat, black"'), "right"),
        ("empty.csv", "", "sentence"),
        ("empty.txt", "# nothing\n", "sentence"),
        ("header-alone.csv", "path,label\n", "sentence"),
        ("missing.txt", "nothing.png\n", "sentence"),
        ("passwd.txt", "/etc/passwd\n", "either"),
        ("passwd.csv", "../../../../etc/passwd,a\n/etc/hosts,b\n", "either"),
        ("zero.txt", "/dev/zero\n", "either"),
        ("zero.csv", f"{labelled}/dev/zero,cat\n", "either"),
        ("fifo.txt", "fifo.png\n", "either"),
        ("itself.txt", "itself.txt\n", "either"),
        ("folder.txt", ".\n", "sentence"),
        ("null.txt", "a\0b.png\n", "sentence"),
        ("null.csv", "a\0b.png,cat\n", "sentence"),
        ("long.csv", "x" * 200_000 + ",cat\n", "sentence"),
        ("long.txt", "x" * 200_000 + "\n", "sentence"),
        ("commas.csv", "0.png" + "," * 300_000 + "\n", "either"),
        ("quote.csv", '0.png,"never closed\n' * 100, "either"),
        ("semicolons.csv", labelled.replace(",", ";"), "either"),
        ("partly.csv", labelled + "0.png\n", "sentence"),
        ("html.csv", labelled.replace("cat", "<script>alert(1)</script>"), "either"),
        ("newline.csv", labelled.replace("cat", '"two\nlines"'), "either"),
        ("formula.csv", labelled.replace("cat", "=cmd|' /C calc'!A0"), "right"),
        ("thousands.txt", "0.png\n" * 20_000, "right"),
        ("urls.txt", "http://127.0.0.1:1/a.png\nfile:///etc/passwd\n", "sentence"),
        ("home.txt", "~root/a.png\n$HOME/a.png\n", "sentence"),
        ("controls.txt", plain.replace("\n", "\x0b\x1c"), "either"),
    ):
        corpus.add("list", name, text.encode(), expected)
    corpus.add("list", "utf16.csv", labelled.encode("utf-16"), "sentence")
    corpus.add("list", "binary.txt", corpus.random.bytes(5000), "sentence")
    corpus.add("list", "bom.csv", labelled.encode("utf-8-sig"), "right")
    corpus.add("list", "not-utf8.txt", b"caf\xe9.png\n", "sentence")
    os.mkfifo(corpus.add("list", "list-fifo.txt", None, "sentence"))
    corpus.add("list", "list-zero.txt", None, "sentence").symlink_to("/dev/zero")
    with corpus.add("list", "sparse.txt", b"", "sentence").open("wb") as file:
        file.truncate(2**33)
