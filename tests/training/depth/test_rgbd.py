"""RGB-D folders: what is read, how it is parted, the figures of the literature, and what cannot be used."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dinoviz.errors import DinovizError
from training.depth.rgbd import Pair, counts, depth_errors, find_pairs, intrinsics, meta, split


def test_errors_are_those_of_the_literature():
    rng = np.random.default_rng(0)
    depth, predicted = rng.uniform(0.5, 9, (12, 15)), rng.uniform(0.5, 9, (12, 15))
    depth[rng.uniform(size=depth.shape) < 0.2] = 0
    valid = depth > 0
    for scaled in (False, True):
        pairs = [(float(p), float(t)) for p, t in zip(predicted.ravel(), depth.ravel(), strict=True) if t > 0]
        if scaled:
            middle = [sorted(each)[len(pairs) // 2] for each in zip(*pairs, strict=True)]
            if len(pairs) % 2 == 0:
                middle = [(sorted(e)[len(pairs) // 2] + sorted(e)[len(pairs) // 2 - 1]) / 2
                          for e in zip(*pairs, strict=True)]  # fmt: skip
            pairs = [(p * middle[1] / middle[0], t) for p, t in pairs]
        n = len(pairs)
        logs = [np.log(p) - np.log(t) for p, t in pairs]
        expected = {
            "rmse": (sum((p - t) ** 2 for p, t in pairs) / n) ** 0.5,
            "rmse_log": (sum(g**2 for g in logs) / n) ** 0.5,
            "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
            "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
            "log10": sum(abs(np.log10(p) - np.log10(t)) for p, t in pairs) / n,
            "silog": 100 * (sum(g**2 for g in logs) / n - (sum(logs) / n) ** 2) ** 0.5,
            **{f"delta{i}": sum(max(p / t, t / p) < 1.25**i for p, t in pairs) / n for i in (1, 2, 3)},
        }
        found = depth_errors(predicted, depth, valid, median_scaled=scaled)
        assert found == pytest.approx(expected, rel=1e-9)


def test_scaling_by_the_median_forgives_scale_alone():
    depth = np.random.default_rng(0).uniform(1, 9, (5, 5))
    assert depth_errors(2 * depth, depth, depth > 0)["delta1"] == 0
    assert depth_errors(2 * depth, depth, depth > 0, median_scaled=True)["rmse"] == pytest.approx(0, abs=1e-9)


def test_the_eigen_crop_is_that_of_the_whole_picture():
    whole = counts(np.full((480, 640), 5.0), "eigen", 10.0)
    assert whole[45:471, 41:601].all()
    assert whole.sum() == 426 * 560
    cut = counts(np.full((464, 624), 5.0), "eigen", 10.0, border=8)
    assert np.array_equal(cut, whole[8:-8, 8:-8])
    assert counts(np.array([[0.0, 3.0, 11.0]]), "none", 10.0).tolist() == [[False, True, False]]
    assert counts(np.full((480, 640), 5.0), "eigen", 10.0, border=60).shape == (
        480,
        640,
    )  # a border wider than the crop


@pytest.fixture
def folder(tmp_path):
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()

    def add(name: str, depth: np.ndarray, suffix: str = ".png", size=(40, 30)) -> Pair:
        Image.new("RGB", size).save(tmp_path / "rgb" / f"{name}.png")
        path = tmp_path / "depth" / f"{name}{suffix}"
        np.save(path, depth) if suffix == ".npy" else Image.fromarray(depth).save(path)
        return Pair(tmp_path / "rgb" / f"{name}.png", path)

    return add


METRES = np.linspace(0.5, 9, 1200).reshape(30, 40)


@pytest.mark.parametrize(
    ("depth", "suffix"),
    [
        ((1000 * METRES).astype(np.uint16), ".png"), ((1000 * METRES).astype(np.uint16), ".npy"),
        ((1000 * METRES).astype(np.int32), ".npy"), (METRES, ".npy"), (METRES.astype(np.float16), ".npy"),
        (METRES.astype(np.float32), ".npy"), (METRES.astype(">f4"), ".npy"), (np.asfortranarray(METRES), ".npy"),
    ],
)  # fmt: skip
def test_depth_comes_in_millimetres_or_metres(depth, suffix, folder):
    pair = folder("a", depth, suffix)
    picture, found = pair.open()
    assert picture.size == (40, 30)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, METRES, atol=4e-3)  # of half floats, and of whole millimetres
    picture, cut = pair.open(border=5)
    assert picture.size == (30, 20)
    assert np.array_equal(cut, found[5:-5, 5:-5])
    assert [each.depth.name for each in find_pairs(pair.depth.parents[1])] == [f"a{suffix}"]


def test_nan_and_infinity_are_unknown(folder):
    depth = METRES.copy()
    depth[0, 0], depth[0, 1], depth[0, 2], depth[0, 4] = np.nan, np.inf, -np.inf, 1e300
    _, found = folder("a", depth, ".npy").open()
    assert (found == 0).sum() == 4
    assert found[0, 3] == pytest.approx(METRES[0, 3])


@pytest.mark.parametrize(
    ("depth", "suffix", "words"),
    [
        ((1000 * METRES).astype(np.uint16)[:20], ".png", "40 x 20.*40 x 30"),
        (METRES[:, :20], ".npy", "20 x 30.*40 x 30"),
        (METRES.astype(np.uint16), ".png", "9 mm.*1000"),
        (METRES.astype(np.int64), ".npy", "9 mm.*1000"),
        (1000 * METRES, ".npy", "4750 m.*1000"),
        (-METRES, ".npy", "-9 m"),
        ((-1000 * METRES).astype(np.int16), ".npy", "-9 m"),
        ((20 * METRES).astype(np.uint8), ".png", "16 bits"),
        (np.zeros((30, 40, 3), np.uint8), ".png", "16 bits"),
        (np.zeros((30, 40, 1)), ".npy", r"\(H, W\)"),
        (np.full((30, 40), "x"), ".npy", r"\(H, W\)"),
        (np.full((30, 40), None), ".npy", "a.npy"),  # needs a pickle
    ],
)  # fmt: skip
def test_refuses_invalid_depth(depth, suffix, words, folder):
    pair = folder("a", depth, suffix)
    with pytest.raises(DinovizError, match=words) as refused:
        pair.open()
    assert str(refused.value).count(". ") == 0


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_half_a_file_and_a_lying_one_are_refused(suffix, folder):
    pair = folder("a", (1000 * METRES).astype(np.uint16), suffix)
    whole = pair.depth.read_bytes()
    other = folder("b", np.zeros((30, 40), np.uint16)).image.read_bytes()  # a picture
    for content in (b"", whole[:20], whole[: len(whole) // 2], b"GIF89a" + whole, other[:40] + whole):
        pair.depth.write_bytes(content)
        with pytest.raises(DinovizError, match=rf"a\{suffix}"):
            pair.open()


def test_a_header_that_promises_too_much_takes_no_memory(folder):
    pair = folder("a", METRES, ".npy")
    content = pair.depth.read_bytes()
    pair.depth.write_bytes(content.replace(b"(30, 40), }        ", b"(3000000, 400000), }", 1)[: len(content)])
    with pytest.raises(DinovizError, match=r"a\.npy"):
        pair.open()


def test_missing_pairs_are_counted(folder, tmp_path):
    for i in range(5):
        pair = folder(str(i), (1000 * METRES).astype(np.uint16))
        if i:
            pair.depth.unlink()
    with pytest.raises(DinovizError, match=r"4 of 5 .*1.png, 2.png, 3.png"):
        find_pairs(tmp_path)


def test_intrinsics_are_read_if_there_are_any(tmp_path):
    assert intrinsics(tmp_path) is None
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({"intrinsics": {"fx": 500, "fy": 501.5, "cx": 320, "cy": 240, "k1": 0.1}}))
    assert intrinsics(tmp_path) == {"fx": 500.0, "fy": 501.5, "cx": 320.0, "cy": 240.0}
    for wrong in ({"fx": 500}, {"fx": "a", "fy": 1, "cx": 1, "cy": 1}, [1, 2], {"fx": 0, "fy": 1, "cx": 1, "cy": 1}):
        file.write_text(json.dumps({"intrinsics": wrong}))
        with pytest.raises(DinovizError, match=r"intrinsics in meta\.json"):
            intrinsics(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "no json", "[]", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"intrinsics": {"fx": 1' + "0" * 400 + "}}",
        '{"intrinsics": {"fx": 1e400, "fy": 1, "cx": 1, "cy": 1}}', '{"licence": "\\ud800"}',
    ],
    ids=lambda content: content[:20],
)  # fmt: skip
def test_a_meta_json_that_cannot_be_read_is_refused(content, tmp_path):
    # Its camera would otherwise be missing from the probe without a word.
    (tmp_path / "meta.json").write_text(content)
    for read in (meta, intrinsics):
        with pytest.raises(DinovizError, match=r"meta\.json"):
            read(tmp_path)


def npy(header: str, version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + bytes(2400)


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (%s, 40), }" % 10**400),
        npy("{'descr': '<f8', 'fortran_order': True, 'shape': (4611686018427387904, 4), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-30, -40), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (30, 40), }"),
        npy("{'descr': '<V100000000', 'fortran_order': False, 'shape': (30, 40), }"),
        npy("(" * 9000),
        npy("{'descr': " + "[" * 4000 + "]" * 4000 + ", 'fortran_order': False, 'shape': (30, 40), }"),
        npy("{}", version=2)[:8] + (2**32 - 1).to_bytes(4, "little"),
        b"PK\x05\x06" + bytes(18),
        b"\x80\x04\x95",
    ],
    ids=range(10),
)
def test_an_array_s_header_that_lies_is_refused(content, folder):
    pair = folder("a", METRES, ".npy")
    pair.depth.write_bytes(content)
    with pytest.raises(DinovizError, match=r"a\.npy"):
        pair.open()


def test_a_png_that_would_fill_the_memory_is_refused(folder):
    pair = folder("a", (1000 * METRES).astype(np.uint16))
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    pair.depth.write_bytes(content + pair.depth.read_bytes()[33:])
    with pytest.raises(DinovizError, match=r"a\.png"):
        pair.open()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_depth_that_is_no_file_is_not_opened(suffix, folder):
    pair = folder("a", (1000 * METRES).astype(np.uint16), suffix)
    pair.depth.unlink()
    os.mkfifo(pair.depth)
    with pytest.raises(DinovizError, match="no such file"):
        pair.open()


def named(*names: str) -> list[Pair]:
    from pathlib import Path

    return [Pair(Path(f"rgb/{name}.jpg"), Path(f"depth/{name}.png")) for name in names]


def stems(pairs: list[Pair]) -> list[str]:
    return [pair.image.stem for pair in pairs]


def test_no_group_is_on_two_sides():
    # Twenty rooms of three pictures each, with a gap in the numbers between them.
    names = [f"{5 * room + i:04}" for room in range(20) for i in range(3)]
    parts = split(named(*names), 0.125, 4)
    assert stems(parts.held_out) == ["0035", "0036", "0037", "0075"]  # the 8th and the beginning of the 16th
    assert stems(parts.validation) == [f"{5 * room + i:04}" for room in (3, 11, 19) for i in range(3)]
    assert not {"0076", "0077"} & set(stems([*parts.train, *parts.validation, *parts.held_out]))
    assert len(parts.train) == 60 - 9 - 4 - 2
    assert "20 in all" in parts.rule
    assert "the 2 others of the last one are not used" in parts.rule
    without = split(named(*names), 0.125)
    assert without.held_out == []
    assert len(without.train) == 51
    assert stems(without.validation) == stems(parts.validation)  # choices do not depend on what is held out


def test_names_without_numbers_are_groups_of_their_own():
    names = sorted(f"{a}{b}" for a in "abcd" for b in "wxyz")
    parts = split(named(*names), 0.25, 2)
    assert stems(parts.held_out) == ["bz", "dz"]
    assert stems(parts.validation) == ["ax", "bx", "cx", "dx"]


def test_the_same_numbers_of_other_names_are_other_groups():
    names = [f"{room}_{i}" for room in "abcdefgh" for i in range(4)]
    parts = split(named(*names), 0.125, 4)
    assert {name[0] for name in stems(parts.held_out)} == {"h"}
    assert {name[0] for name in stems(parts.validation)} == {"d"}


def test_one_long_group_is_cut_into_stretches():
    names = [f"{i:03}" for i in range(80)]
    parts = split(named(*names), 0.125)
    assert stems(parts.validation) == names[30:40]
    assert "8 stretches" in parts.rule
    assert len(split(named("a", "b"), 0.125).train) == 1
    with pytest.raises(DinovizError, match="; 1 "):
        split(named("a"), 0.5)
    with pytest.raises(DinovizError, match=r"11.* 10 "):
        split(named(*names), 0.125, 11)


def test_pairs_are_in_the_order_of_their_numbers(folder, tmp_path):
    for name in ("10", "9", "b2", "b11", "a"):
        folder(name, (1000 * METRES).astype(np.uint16))
    assert stems(find_pairs(tmp_path)) == ["9", "10", "a", "b2", "b11"]
    assert stems(find_pairs(tmp_path, limit=2)) == ["9", "10"]


def test_nyu_is_parted_as_written_down(data_folder):
    if not (data_folder / "nyu").is_dir():
        pytest.skip(f"no NYU Depth in {data_folder}")
    parts = split(find_pairs(data_folder / "nyu"), 0.125, 100)
    assert len(parts.held_out) == 100
    assert "123 in all" in parts.rule
    sides = [{int(pair.image.stem) for pair in part} for part in (parts.train, parts.validation, parts.held_out)]
    for i, one in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not one & ({n + 1 for n in other} | {n - 1 for n in other} | other)  # not even neighbours
