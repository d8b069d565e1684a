import io
import os
import pickle
import signal
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoviz.images import ImageError
from tests.training.tiny_runs import refused
from training.data import zips
from training.data.dataset import DataError, Decoded, Pictures, batches, find, prefetching, split
from training.data.demo import DEMO_SIZE, demo

UNREADABLE = "this is not an image that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF and PNM are)"


@pytest.fixture(scope="session")
def crops(astronaut, chelsea, coffee) -> list[Image.Image]:
    """60 different pieces of three photographs, 48 x 32."""
    found = []
    for picture in (astronaut, chelsea, coffee):
        found += [picture.crop((13 * i, 11 * i, 13 * i + 48, 11 * i + 32)) for i in range(20)]
    return found


@pytest.fixture
def classes(tmp_path, crops) -> Path:
    """Class folders as people have them: one deeper than the other, with what programs leave beside the images."""
    folder = tmp_path / "animals"
    for name, crop in {"cat/one.png": 0, "cat/deep/two.JPG": 1, "Žirafa ü/三.webp": 2, "dog/four.png": 3}.items():
        save(folder / name, crops[crop])
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "cat" / "._one.png").write_bytes(b"\0")
    (folder / "notes.txt").write_text("four animals")
    return folder


def save(path: Path, picture: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def flat(folder: Path, pictures: list[Image.Image]) -> Path:
    for i, picture in enumerate(pictures):
        save(folder / f"{i:03}.png", picture)
    return folder


def zipped(path: Path, members: dict[str, bytes | Image.Image], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            if isinstance(content, Image.Image):
                stream = io.BytesIO()
                content.save(stream, "PNG")
                content = stream.getvalue()
            archive.writestr(name, content)
    return path


refusal = partial(refused, DataError)


def label_of(pictures: Pictures, name: str) -> str:
    return pictures.classes[pictures.labels[pictures.names.index(name)]]


def test_the_folders_right_below_are_the_classes(classes, crops):
    found = find(classes)
    assert found.names == ("cat/deep/two.JPG", "cat/one.png", "dog/four.png", "Žirafa ü/三.webp")
    assert found.classes == ("cat", "dog", "Žirafa ü")
    assert found.labels.tolist() == [0, 0, 1, 2]
    assert np.array_equal(np.asarray(found.open(1)), np.asarray(crops[0]))


def test_a_folder_with_an_image_outside_the_classes_has_none(classes, crops):
    save(classes / "extra.png", crops[4])
    assert (find(classes).labels, find(classes).classes) == (None, ())


def test_classes_can_be_ignored(classes):
    assert find(classes, classes=False).labels is None


def test_links_to_folders_are_followed_but_not_in_circles(classes, tmp_path, crops):
    flat(tmp_path / "elsewhere", crops[:2])
    (classes / "linked").symlink_to(tmp_path / "elsewhere")
    (classes / "cat" / "circle").symlink_to(classes)
    assert find(classes).names[-3:-1] == ("linked/000.png", "linked/001.png")
    assert len(find(classes)) == 6


def test_a_zip_file_equals_its_folder_and_is_not_extracted(classes, tmp_path):
    members = {name: (classes / name).read_bytes() for name in find(classes).names}
    rubbish = {"__MACOSX/cat/._one.png": b"x", ".hidden/a.png": b"x", "notes.txt": b"x"}
    plain = find(zipped(tmp_path / "plain.zip", {**members, **rubbish}))
    assert plain.names == tuple(f"plain.zip/{name}" for name in find(classes).names)
    assert (plain.classes, plain.labels.tolist()) == (("cat", "dog", "Žirafa ü"), [0, 0, 1, 2])
    before = sorted(tmp_path.rglob("*"))
    for i in range(4):
        assert np.array_equal(np.asarray(plain.open(i)), np.asarray(find(classes).open(i)))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_single_top_folder_of_a_zip_file_is_not_a_class(tmp_path, crops):
    nested = {"set/v1/cat/a.png": crops[0], "set/v1/dog/b.png": crops[1], "__MACOSX/x/c.png": crops[2]}
    assert find(zipped(tmp_path / "nested.zip", nested)).classes == ("cat", "dog")
    alone = {"pictures/a.png": crops[0], "pictures/b.png": crops[1]}
    assert find(zipped(tmp_path / "flat.zip", alone)).labels is None


@pytest.mark.parametrize("name", ["../../up/a.png", "cat/../../b.png", "C:\\b.png", "..\\b.png"])
def test_a_zip_file_that_leads_out_of_itself_is_refused(tmp_path, crops, name):
    path = zipped(tmp_path / "climb.zip", {"cat/a.png": crops[0], name: crops[1]})
    assert "climb.zip" in refusal(find, path)


def test_backslashes_and_leading_slashes_in_a_zip_file(tmp_path, crops):
    found = find(zipped(tmp_path / "a.zip", {"win\\c.png": crops[2], "up/a.png": crops[0], "/root/b.png": crops[1]}))
    assert found.classes == ("root", "up", "win")
    assert label_of(found, "a.zip/win/c.png") == "win"


def test_a_bomb_is_not_read(tmp_path, crops):
    deflated = {"compression": zipfile.ZIP_DEFLATED}
    bomb = zipped(tmp_path / "bomb.zip", {"a.png": crops[0], "b.png": bytes(11_000_000)}, **deflated)
    text = refusal(find, bomb)
    assert "bomb.zip: b.png" in text
    assert "11 MB" in text
    # Files that are not read have no bounds.
    assert len(find(zipped(tmp_path / "log.zip", {"a.png": crops[0], "b.log": bytes(11_000_000)}, **deflated))) == 1


def test_a_member_that_is_too_large_is_not_read(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(zips, "MAX_MEMBER_BYTES", 1_000_000)
    path = zipped(tmp_path / "large.zip", {"a.bmp": bytes(2_000_000)})
    text = refusal(find, path)
    assert all(each in text for each in ("large.zip: a.bmp", "2 MB", "1 MB"))


def test_a_zip_file_of_too_many_files_is_not_read(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(zips, "MAX_MEMBERS", 2)
    path = zipped(tmp_path / "many.zip", {f"{i}.png": crops[i] for i in range(3)})
    assert "many.zip has 3 files; at most 2" in refusal(find, path)


def test_damaged_and_encrypted_zip_files_are_refused(tmp_path, crops):
    path = zipped(tmp_path / "a.zip", {"a.png": crops[0], "b.png": crops[1]})
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-40])
    assert "cut.zip is damaged" in refusal(find, tmp_path / "cut.zip")
    for at in range(len(content) - 4):  # the flag of encryption, in the directory at the end
        if content[at : at + 4] == b"PK\x01\x02":
            content[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    assert "locked.zip is encrypted" in refusal(find, tmp_path / "locked.zip")


def test_a_damaged_member_is_one_broken_picture(tmp_path, crops):
    path = zipped(tmp_path / "a.zip", {f"{i}.png": crops[i] for i in range(5)})
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    decoded = Decoded(find(path), 16)
    assert [name for name, _ in decoded.broken] == ["a.zip/0.png"]
    assert len(decoded) == 4


def test_pictures_of_a_removed_zip_file_are_broken(tmp_path, crops):
    path = zipped(tmp_path / "a.zip", {"a.png": crops[0]})
    found = find(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"^a.zip/a.png: .*No such file"):
        found.open(0)
    zipped(path, {"b.png": crops[0]})
    with pytest.raises(ImageError, match=r"^a.zip/a.png: "):
        found.open(0)


def test_a_huge_list_is_not_read(tmp_path):
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(8 * 10**9)
    with pytest.raises(DataError, match="500 MB"):
        find([tmp_path / "sparse.txt"])


def test_a_list_is_relative_to_itself_and_keeps_its_order(tmp_path, crops):
    flat(tmp_path / "pictures", crops[:3])
    path = tmp_path / "curated.txt"
    lines = ["\ufeff# the best", "pictures/002.png", "", f" {tmp_path}/pictures/000.png ", "pictures/002.png"]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = find(path)
    assert found.names == ("pictures/002.png", f"{tmp_path}/pictures/000.png", "pictures/002.png")
    assert found.labels is None
    assert np.array_equal(np.asarray(found.open(0)), np.asarray(crops[2]))


@pytest.mark.parametrize(
    "text",
    [
        'path,label\np/000.png,red\n"p/001.png", blue',
        "label,width,path\nred,3,p/000.png\nblue,4,p/001.png\n",
        "p/000.png,red\np/001.png,blue\n\n# end",
    ],
    ids=["header", "other columns", "no header"],
)
def test_a_csv_list_has_labels(tmp_path, crops, text):
    flat(tmp_path / "p", crops[:2])
    (tmp_path / "list.csv").write_text(text)
    found = find(tmp_path / "list.csv")
    assert (found.names, found.classes, found.labels.tolist()) == (("p/000.png", "p/001.png"), ("blue", "red"), [1, 0])


def test_a_csv_list_of_paths_alone_has_none(tmp_path, crops):
    flat(tmp_path / "p", crops[:2])
    (tmp_path / "list.csv").write_text("path\np/000.png\np/001.png\n")
    assert (len(find(tmp_path / "list.csv")), find(tmp_path / "list.csv").labels) == (2, None)


def test_several_sources_are_joined_and_equal_classes_merged(classes, tmp_path, crops):
    second = zipped(tmp_path / "b.zip", {"zebra/z.png": crops[0], "cat/c.png": crops[1]})
    found = find([classes, second])
    assert found.classes == ("cat", "dog", "zebra", "Žirafa ü")
    assert label_of(found, "animals/cat/one.png") == label_of(found, "b.zip/cat/c.png") == "cat"
    single = save(tmp_path / "single.png", crops[2])
    assert find([classes, single]).labels is None
    assert find([str(classes), single]).names[-1] == "single.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: f / "none", "{}/none"),
        (lambda f: f, "data is empty"),
        (lambda f: [], "No images"),
        (lambda f: write(write(f / "a", b"").with_name("b"), b"").parent, "2 files"),
        (lambda f: write(f / "a.md", b"x").parent, "data has one file"),
        (lambda f: zipped(f / "e.zip", {}), "e.zip is empty"),
        (lambda f: zipped(f / "n.zip", {"a.md": b"x"}), "n.zip has one file"),
        (lambda f: write(f / "a.tgz", b"x"), "a.tgz"),
        (lambda f: write(f / "a.txt", b"# none\n"), "a.txt"),
        (lambda f: write(f / "a.csv", b"path,label\n"), "a.csv"),
        (lambda f: write(f / "a.txt", b"\xff\xfe\x80"), "UTF-8"),
        (
            lambda f: write(f / "a.txt", b"1.png\n2.png\n3.png\n4.png\na.txt"),
            "1.png, 2.png, 3.png and 1 more",
        ),
        (lambda f: write(f / "a.csv", b"a.csv,x\na.csv"), "a.csv: 1 of "),
    ],
)  # fmt: skip
def test_refuses_sources_without_images(tmp_path, make, words):
    folder = tmp_path / "data"
    folder.mkdir()
    assert words.format(folder) in refusal(find, make(folder))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_demo_is_always_the_same():
    train, held_out = demo("train"), demo("held-out")
    assert train.classes == held_out.classes
    assert len(train.classes) == 18
    assert np.bincount(train.labels).tolist() == [40] * 18
    assert np.bincount(held_out.labels).tolist() == [12] * 18
    assert train.open(0).size == (DEMO_SIZE, DEMO_SIZE)
    again = demo("train")
    assert again.names == train.names
    assert all(np.array_equal(a, b) for a, b in zip(again.where, train.where, strict=True))
    assert "not 'test'" in refusal(demo, "test")


def test_no_held_out_pixel_of_the_demo_is_trained_on(monkeypatch):
    # Pictures whose colour tells the side: a single foreign pixel would show.
    sides = np.zeros((100, 200, 3), np.uint8)
    sides[:, 140:] = 255
    monkeypatch.setattr("training.data.demo.demo_picture", lambda file: Image.fromarray(sides))
    assert max(crop.max() for crop in demo("train").where) == 0
    assert min(crop.min() for crop in demo("held-out").where) == 255


def test_a_split_is_by_class_and_reproducible():
    pictures = demo("held-out")
    left, taken = split(pictures, 0.25, seed=3)
    assert np.bincount(left.labels).tolist() == [9] * 18
    assert np.bincount(taken.labels).tolist() == [3] * 18
    assert set(left.names) | set(taken.names) == set(pictures.names)
    assert split(pictures, 0.25, seed=3)[1].names == taken.names
    assert split(pictures, 0.25, seed=4)[1].names != taken.names
    two = pictures.subset([0, 1])
    assert [len(part) for part in split(two, 0.01, seed=0)] == [1, 1]
    assert [len(part) for part in split(two, 0.99, seed=0)] == [1, 1]


def test_a_split_without_classes_is_of_the_whole(tmp_path, crops):
    left, taken = split(find(flat(tmp_path, crops[:10])), 0.3, seed=0)
    assert (len(left), len(taken), left.labels) == (7, 3, None)


def test_refuses_impossible_splits():
    pictures = demo("held-out")
    lonely = pictures.subset([*range(12), 12])
    for arguments, words in (
        ((lonely, 0.5), "brick"),
        ((pictures, 1.0), "1.0"),
        ((pictures.subset([]), 0.5), "no images"),
    ):
        assert words in refusal(split, *arguments, 0)


def test_pictures_that_fit_in_memory_are_decoded_once(tmp_path, crops):
    save(tmp_path / "wide.png", crops[0])
    Image.fromarray(np.asarray(crops[1])[:, :16]).save(tmp_path / "tall.png")
    done = []
    decoded = Decoded(find(tmp_path), 24, progress=lambda n, of: done.append((n, of)))
    assert decoded.cached
    assert (decoded.images.shape, decoded.images.dtype) == ((2, 3, 24, 24), torch.uint8)
    assert decoded.aspects.tolist() == [0.5, 1.5]
    assert done == [(1, 2), (2, 2)]
    squeezed = np.asarray(crops[0].resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(decoded.images[1].permute(1, 2, 0).numpy(), squeezed)
    pixels, aspect, broken = decoded[1]
    assert (aspect, broken) == (1.5, -1)
    assert torch.equal(pixels, decoded.images[1])
    assert torch.equal(torch.stack([row for row, _, _ in decoded.__getitems__([1, 0])]), decoded.images[[1, 0]])


def test_images_are_cached_if_they_fit_in_memory():
    pictures = demo("held-out")
    needed = len(pictures) * 3 * 8 * 8
    assert Decoded(pictures, 8, memory=needed).cached
    streamed = Decoded(pictures, 8, memory=needed - 1)
    assert (streamed.cached, streamed.images, streamed.aspects) == (False, None, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_the_cached_ones(tmp_path, crops, workers):
    members = {f"{i:02}.png": crop for i, crop in enumerate(crops)}
    pictures = find(zipped(tmp_path / "all.zip", members))  # whose open file the workers must not share
    cached, streamed = Decoded(pictures, 16), Decoded(pictures, 16, memory=0)
    streamed.batch([0])
    order = [[5, 3, 59], [0, 1, 2], [7], *([i, i + 20, i + 40] for i in range(20))]
    seed = torch.random.get_rng_state()
    count = 0
    for (pixels, aspects), indices in zip(batches(streamed, order, workers=workers), order, strict=True):
        expected = cached.batch(indices)
        assert torch.equal(pixels, expected[0])
        assert torch.equal(aspects, expected[1])
        assert aspects.dtype == torch.float32
        count += 1
    assert count == len(order)
    # A run that is resumed in the middle of an epoch makes the loader anew; that must not change what comes after.
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert [len(pixels) for pixels, _ in batches(cached, order)] == [len(indices) for indices in order]


def broken_among(folder: Path, crops: list[Image.Image], count: int, broken: tuple[int, ...]) -> Pictures:
    flat(folder, [crops[i % len(crops)] for i in range(count)])
    for i in broken:
        (folder / f"{i:03}.png").write_text("I am no picture")
    return find(folder)


def test_a_few_broken_pictures_are_left_out_and_named(tmp_path, crops):
    pictures = broken_among(tmp_path, crops, 20, (7,))  # 5 %, but one only
    decoded = Decoded(pictures, 16)
    assert decoded.broken == [("007.png", UNREADABLE)]
    assert (len(decoded), "007.png" in decoded.pictures.names) == (19, False)
    whole = Decoded(pictures.subset([i for i in range(20) if i != 7]), 16)
    assert torch.equal(decoded.images, whole.images)
    assert torch.equal(decoded.aspects, whole.aspects)


def test_labels_stay_with_their_pictures(tmp_path, crops):
    folder = tmp_path / "set"
    flat(folder / "a", crops[:10])
    flat(folder / "b", crops[10:20])
    (folder / "a" / "000.png").write_bytes(b"")
    decoded = Decoded(find(folder), 8)
    assert decoded.labels.tolist() == [0] * 9 + [1] * 10
    assert decoded.broken == [("a/000.png", "the file is empty")]


def test_too_many_broken_pictures_are_an_error_with_their_names(tmp_path, crops):
    pictures = broken_among(tmp_path, crops, 120, (3, 4, 50, 60, 70, 119))  # 5 %
    with pytest.raises(DataError) as refused:
        Decoded(pictures, 8)
    first = "; ".join(f"{i:03}.png ({UNREADABLE})" for i in (3, 4, 50, 60, 70))
    for words in ("6 of 120", first, "1 more"):
        assert words in str(refused.value)
    assert [name for name, _ in refused.value.broken] == [f"{i:03}.png" for i in (3, 4, 50, 60, 70, 119)]
    assert len(Decoded(pictures, 8, max_broken=0.06)) == 114


def test_refuses_pictures_that_are_all_broken(tmp_path, crops):
    pictures = broken_among(tmp_path, crops, 1, (0,))
    assert "1 of 1 images" in refusal(Decoded, pictures, 8)
    assert "no images" in refusal(Decoded, pictures.subset([]), 8)
    assert "1 of 1 images" in refusal(Decoded(pictures, 8, memory=0).batch, [0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_picture_replaces_a_broken_one_of_a_stream(tmp_path, crops, workers):
    pictures = broken_among(tmp_path, crops, 40, (39,))
    streamed = Decoded(pictures, 8, memory=0)
    assert streamed[39][2] == 39
    assert streamed[38][2] == -1
    pixels = torch.cat([pixels for pixels, _ in batches(streamed, [[39, 38], [39, 0]], workers=workers)])
    assert torch.equal(pixels[0], pixels[3])
    assert torch.equal(pixels[2], pixels[3])
    assert streamed.broken == [("039.png", UNREADABLE)]  # found twice, counted once


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_too_many_broken_pictures_stops(tmp_path, crops, workers):
    pictures = broken_among(tmp_path, crops, 60, (0, 10, 20, 30))
    order = [[0, 1], [10, 11], [20, 21], [30, 31]]
    text = refusal(lambda: list(batches(Decoded(pictures, 8, memory=0), order, workers=workers)))
    assert "2 of 60 images" in text
    assert "000.png" in text
    together = broken_among(tmp_path, crops, 60, tuple(range(60)))
    assert "030.png" in refusal(lambda: list(batches(Decoded(together, 8, memory=0), [[30]], workers=workers)))


def test_a_killed_worker_is_an_error(tmp_path, crops, monkeypatch):
    streamed = Decoded(find(flat(tmp_path, crops[:4])), 8, memory=0)
    monkeypatch.setattr(Decoded, "_decode", lambda self, i: os.kill(os.getpid(), signal.SIGKILL))
    assert "lower workers" in refusal(lambda: list(batches(streamed, [[0], [1]], workers=1)))


def test_streamed_pictures_can_be_pickled(classes):
    streamed = Decoded(find(classes), 8, memory=0, progress=lambda n, of: None)
    sent = pickle.loads(pickle.dumps(streamed))
    assert torch.equal(sent[0][0], streamed[0][0])


MB = 1_000_000


@pytest.mark.parametrize(
    ("workers", "batch", "free", "expected"),
    [
        (15, 7 * MB, 64 * MB, (4, 1)),  # Docker's 64 MB, of which a half is used
        (15, 7 * MB, 8000 * MB, (15, 2)),
        (3, 7 * MB, 64 * MB, (3, 1)),
        (2, 7 * MB, 64 * MB, (2, 2)),
        (4, 40 * MB, 64 * MB, (0, None)),  # decoded in the process itself
        (0, 7 * MB, 64 * MB, (0, None)),
    ],
)
def test_prefetched_batches_fit_in_half_of_the_shared_memory(workers, batch, free, expected):
    assert prefetching(workers, batch, free) == expected


def test_a_small_shared_memory_changes_no_batch(tmp_path, crops, monkeypatch):
    decoded = Decoded(find(flat(tmp_path, crops[:6])), 16, memory=0)
    order = [[0, 1], [2, 3], [4, 5]]
    wide = [pixels for pixels, _ in batches(decoded, order, workers=2)]
    monkeypatch.setattr("training.data.dataset.shared_memory", lambda: 1000)
    monkeypatch.setattr(torch.multiprocessing, "Process", None)  # no worker may be started
    narrow = [pixels for pixels, _ in batches(decoded, iter(order), workers=2)]
    assert all(torch.equal(one, other) for one, other in zip(wide, narrow, strict=True))
