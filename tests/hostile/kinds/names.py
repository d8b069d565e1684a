"""Sound and damaged pictures whose names are trouble: in messages, tables, pages and paths."""

from __future__ import annotations

from tests.hostile.generate import Corpus, picture
from tests.hostile.kinds.images import encoded

NAMES: dict[str, bytes] = {
    "newline": b"two\nlines.png",
    "return": b"back\r.png",
    "bell": b"bell\x07\x1b[31mred.png",
    "tab": b"a\tb.png",
    "long": b"n" * 245 + b".png",
    "longest": b"n" * 251 + b".png",
    "not-utf8": b"caf\xe9-\xff\xfe.png",
    "emoji": "\U0001f408\u200d\u2b1b cat.png".encode(),
    "html": b"<img src=x onerror=alert(1)>.png",
    "entity": b"&lt;b&gt;&amp;.png",
    "quotes": b"'\"`$(id)`.png",
    "dash": b"-rf.png",
    "dashes": b"--help.png",
    "dot": b".hidden.png",
    "bidi": "\u202egnp.exe.png".encode(),
    "spaces": b"   .png",
    "braces": b"{0}%s%n{x!r}.png",
    "backslash": b"..\\..\\up.png",
    "colon": b"C:up.png",
    "capitals": b"UPPER.PNG",
    "no-stem": b".png",
    "dots": b"a..png.png",
    "glob": b"[a-z]*?.png",
    "semicolon": b"a;b,c.png",
    "at": b"@file.png",
    "percent": b"%2e%2e%2fup.png",
    "arabic": "\u0635\u0648\u0631\u0629.png".encode(),
    "combining": ("e" + "\u0301" * 90 + ".png").encode(),
    "reserved": b"CON.png",
    "trailing": b"space.png ",
}


def write(corpus: Corpus) -> None:
    sound = encoded(picture(48, 36), "png")
    for what, name in NAMES.items():
        # Each in a folder of its own, which is given where a door takes folders.
        corpus.add("name", what.encode() + b"/" + name, sound)
        corpus.add("name", f"{what}-damaged".encode() + b"/" + name, sound[:200], "sentence")
