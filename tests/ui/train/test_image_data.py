"""What one may train on from the page: uploads of every kind, and of the machine only what its operator opened."""

import io
import os
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz.depth.probe import SHIPPED, ProbeError
from dinoviz.errors import DinovizError
from dinoviz.ui.access import Settings
from dinoviz.ui.jobs import Job
from dinoviz.ui.train.depth_data import DepthSource, teacher_name, teacher_of, teachers
from dinoviz.ui.train.image_data import DEMO, FOLDER, UPLOAD, Source, check_broken, demo_words, in_words, surveyed
from dinoviz.ui.workbench import Workbench
from tests.training.depth.test_pseudo_labels import save_probe
from tests.training.tiny_runs import refused, settings, write_images
from training.data import sources as pictures_module
from training.data import zips
from training.data.demo import demo
from training.data.sources import find
from training.depth.rgbd import find_pairs, intrinsics
from training.pretrain import pretrain
from training.runs.run import Run

HIDDEN = "hidden.png"


def png(shade: int = 128, size: tuple[int, int] = (24, 16)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(content, "PNG")
    return content.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def uploads(*files: Path, roots: tuple[Path, ...] = ()) -> Source:
    return Source(UPLOAD, tuple(map(str, files)), roots=roots)


def on_machine(path: str | Path, *roots: Path, held_out: str = "") -> Source:
    return Source(FOLDER, path=str(path), held_out=held_out, roots=roots)


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder that the operator opened, with pictures in it, and beside it a picture that nobody may see."""
    write_images(tmp_path / "open" / "cats", 4)
    (tmp_path / HIDDEN).write_bytes(png())
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / HIDDEN).write_bytes(png())
    return tmp_path / "open"


@pytest.fixture
def bench() -> Workbench:
    return Workbench(Settings(cache_bytes=2**24))


def look(bench: Workbench, pictures) -> str:
    job = Job(lambda job: surveyed(bench, pictures, job), None)
    list(job.watch(0.01))
    return in_words(job.result())


# Folders of the machine


@pytest.mark.parametrize("path", ["cats", "./cats/", "cats/../cats", "  cats  ", "ABSOLUTE"])
def test_what_lies_below_an_open_folder_is_found(path, root):
    source = on_machine(root / "cats" if path == "ABSOLUTE" else path, root)
    assert len(source.find()) == 4
    assert source.paths(Path("runs/a/data")) == (str(root / "cats"),)


def test_the_open_folder_itself_may_be_named_and_its_own_name_be_relative(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(on_machine(".", Path()).find()) == 4
    assert Path(on_machine("cats", Path()).paths(Path("data"))[0]).is_absolute()


def test_of_several_open_folders_each_is_looked_in(root, tmp_path):
    write_images(tmp_path / "second" / "dogs", 3)
    assert len(on_machine("dogs", root, tmp_path / "second").find()) == 3


@pytest.mark.parametrize(
    "path", ["..", "../closed", "/etc", "/etc/hostname", "cats/../../closed", "~", "~root", "~nobody-is-called-this",
             "cats\0", "/", "../open2"],
)  # fmt: skip
def test_nothing_else_of_the_machine_is_read(path, root, tmp_path):
    write_images(tmp_path / "open2", 1)  # begins like the open one
    told = refused(DinovizError, on_machine(path, root).find)
    assert "is not below" in told
    assert refused(DinovizError, on_machine(path, root).paths, Path("data")) == told
    assert refused(DinovizError, on_machine("cats", root, held_out=path).find) == told


def test_whether_there_is_something_outside_cannot_be_told(root):
    there, missing = (refused(DinovizError, on_machine(path, root).find) for path in ("../closed", "../nothing"))
    assert there.replace("closed", "nothing") == missing


@pytest.mark.parametrize("path", ["nothing", "x" * 5000, "a/" * 2500, "two\nlines"])
def test_what_is_not_there_is_told_in_a_few_words(path, root):
    told = refused(DinovizError, on_machine(path, root).find)
    assert "there is no such file or folder" in told
    assert len(told) < 300


def test_links_lead_no_one_out(root, tmp_path):
    (root / "folder").symlink_to(tmp_path / "closed")
    assert "is not below" in refused(DinovizError, on_machine("folder", root).find)
    (root / "dogs").mkdir()
    (root / "dogs" / "link.png").symlink_to(tmp_path / HIDDEN)
    told = refused(DinovizError, on_machine("dogs", root).find)
    assert told == "link.png is listed or linked, but lies outside of what this page may read."
    # A folder below the one that is named:
    (root / "birds").mkdir()
    (root / "birds" / "in").symlink_to(tmp_path / "closed")
    assert HIDDEN in refused(DinovizError, on_machine("birds", root).find)
    # Within, links are as good as files.
    (root / "dogs" / "link.png").unlink()
    (root / "dogs" / "cat.png").symlink_to(root / "cats" / "000.png")
    assert len(on_machine("dogs", root).find()) == 1


def test_without_open_folders_none_is_read(root):
    told = refused(DinovizError, on_machine(root / "cats").find)
    assert told == "Folders of this machine are not open to this page; upload a zip file."
    assert "Name a folder" in refused(DinovizError, on_machine("  ", root).find)


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_of_the_machine_names_what_is_open_and_nothing_else(suffix, root, tmp_path):
    file = root / f"some.{suffix}"
    file.write_text("cats/000.png\n")
    assert len(on_machine(file.name, root).find()) == 1
    for outside in (tmp_path / HIDDEN, f"../{HIDDEN}", "/etc/hostname"):
        file.write_text(f"cats/000.png\n{outside}\n")
        assert "lies outside" in refused(DinovizError, on_machine(file.name, root).find)
    file.write_text(f"cats/000.png\n{'x' * 5000}\nnull\0byte\n")
    assert "do not exist" in refused(DinovizError, on_machine(file.name, root).find)


def rgbd(folder: Path) -> Path:
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (16, 16)).save(folder / "rgb" / f"{i}.png")
        Image.fromarray(np.full((16, 16), 1000, np.uint16)).save(folder / "depth" / f"{i}.png")
    return folder


def test_pictures_with_depth_are_a_folder_of_the_machine(root, tmp_path):
    rgbd(root / "rooms")
    source = DepthSource(on_machine("rooms", root, held_out="rooms"))
    assert (source.find(), source.count(), source.names()) == (None, 2, ["rooms"])
    assert source.paths(tmp_path) == (str(root / "rooms"),)
    source.bring(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    for other in (Source(DEMO), uploads(root / "cats" / "000.png"), on_machine("", root), on_machine("cats", root),
                  on_machine("../closed", root), on_machine("rooms", root, held_out="cats"),
                  on_machine("rooms", root, held_out="../closed")):  # fmt: skip
        refused(DinovizError, DepthSource(other).find)
    (root / "rooms" / "rgb" / "0.png").unlink()
    (root / "rooms" / "rgb" / "0.png").symlink_to(tmp_path / HIDDEN)
    assert "lies outside" in refused(DinovizError, source.find)
    assert "lies outside" in refused(DinovizError, source.count)


# Uploads


def test_an_uploaded_list_reads_nothing_of_a_public_page_and_what_is_open_of_another(root, tmp_path):
    cache = tmp_path / "gradio"
    for each in ("mine", "yours"):
        (cache / each).mkdir(parents=True)
    (cache / "yours" / "secret.png").write_bytes(png())
    file = cache / "mine" / "list.txt"
    # The same words for what is there and what is not.
    for line in ("/etc/hostname", "/etc/nothing", cache / "yours" / "secret.png", "../yours/secret.png"):
        file.write_text(f"{line}\n")
        told = refused(DinovizError, uploads(file).find)
        assert told == "list.txt lists files of this machine, which are not open to this page."
    for line in (cache / "yours" / "secret.png", "../yours/secret.png", tmp_path / HIDDEN):
        file.write_text(f"{line}\n")
        assert "lies outside" in refused(DinovizError, uploads(file, roots=(root,)).find)
    file.write_text(f"{root / 'cats' / '000.png'}\n")
    assert len(uploads(file, roots=(root,)).find()) == 1


def run_on(source: Source, runs: Path, name: str = "a") -> Run:
    """As the page does it; what was uploaded is forgotten before the run begins."""
    data = runs / name / "data"
    config = settings(Path(), data=source.paths(data), epochs=0.5, batch=4, prototypes=8, knn_every=0.0)
    run = Run.create(name, "pretrain", config.to_dict(), root=runs)
    source.bring(data)
    for file in source.files:
        Path(file).unlink()
    pretrain(config, run)
    return run


@pytest.mark.parametrize("name", ["../../climbed.png", "a/../../../climbed.png", "..\\climbed2.png", "C:\\windows.png"])
def test_a_zip_that_climbs_out_is_refused_and_writes_nothing(tmp_path, name):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    source = uploads(zipped(inside / "photos.zip", {f"{i}.png": png(20 * i) for i in range(8)} | {name: png(9)}))
    assert "outside of itself" in refused(DinovizError, source.find)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["photos.zip"]


def test_a_bomb_is_refused_before_it_is_opened(tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", {"a.png": bytes(30_000_000)})
    assert bomb.stat().st_size < 100_000
    assert "30 MB" in refused(DinovizError, uploads(bomb).find)


def test_a_zip_that_lies_about_its_sizes_breaks_a_picture_and_no_more(tmp_path, bench):
    file = zipped(tmp_path / "liar.zip", {"a.png": bytes(30_000_000), "b.png": png()})
    content = bytearray(file.read_bytes())
    for at in (22, content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02")) + 24):
        content[at : at + 4] = struct.pack("<I", 1000)
    file.write_bytes(content)
    assert "1 cannot be read (50.0%), and would be left out" in look(bench, uploads(file).find())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.zip", b"PK\5\6" + bytes(18), "empty.zip is empty: there are no images in it."),
        ("none.zip", b"", "none.zip is damaged or not a zip file."),
        ("text.zip", b"not a zip", "text.zip is damaged or not a zip file."),
        ("notes.pdf", b"%PDF", "notes.pdf is no zip file, list (.txt, .csv) or image."),
        ("noend", b"", "noend is no zip file, list (.txt, .csv) or image."),
    ],
)
def test_what_is_no_zip_of_images_is_told(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert refused(DinovizError, uploads(tmp_path / name).find) == told


def test_an_encrypted_zip_and_one_without_images_are_told(tmp_path):
    file = zipped(tmp_path / "locked.zip", {"a.png": png()})
    content = bytearray(file.read_bytes())
    for at in (6, content.rindex(b"PK\x01\x02") + 8):
        content[at] |= 1
    file.write_bytes(content)
    assert "is encrypted" in refused(DinovizError, uploads(file).find)
    assert "none of them an image" in refused(
        DinovizError, uploads(zipped(tmp_path / "texts.zip", {"a.md": b"", "b.md": b""})).find
    )


def test_nothing_uploaded_or_forgotten_again_is_told(tmp_path):
    assert "There are no pictures yet" in refused(DinovizError, uploads().find)
    told = refused(DinovizError, uploads(tmp_path / "cache" / "photos.zip").find)
    assert told.startswith("photos.zip is here no more")
    assert str(tmp_path) not in told


@pytest.fixture
def with_broken(tmp_path) -> Source:
    """100 pictures, of which every twentieth is none."""
    files = {f"{i:02}.png": png(2 * i) if i % 20 else b"<img src=x>" for i in range(100)}
    return uploads(zipped(tmp_path / "photos.zip", files))


def test_too_many_broken_pictures_are_told_before_the_run(with_broken, bench):
    pictures = with_broken.find()
    check_broken(bench, pictures, 0.03)  # nobody looked yet
    words = look(bench, pictures)
    assert "<b>100 pictures</b>" in words
    assert "5 cannot be read (5.0%), more than the 3% that a run leaves out: photos.zip/00.png: " in words
    assert "; and 2 more." in words
    told = refused(DinovizError, check_broken, bench, pictures, 0.03)
    assert told.startswith("5 of 100 pictures cannot be read, more than the 3% that this run may leave out")
    for name in ("00.png", "20.png", "40.png"):
        assert name in told
    check_broken(bench, pictures, 0.05)  # who allows more has it


def test_a_run_with_too_many_broken_pictures_fails_with_a_sentence_that_names_them(with_broken, tmp_path):
    with pytest.raises(DinovizError, match=r"5 of 100 .*photos\.zip/00\.png"):
        run_on(with_broken, tmp_path / "runs")
    status = Run(tmp_path / "runs" / "a").status()
    assert status["state"] == "failed"
    assert status["message"].startswith("5 of 100 images cannot be read")


def test_mended_pictures_are_looked_at_again(root, bench):
    broken = root / "cats" / "000.png"
    good = broken.read_bytes()
    broken.write_bytes(b"no picture")
    source = on_machine("cats", root)
    assert "1 cannot be read" in look(bench, source.find())
    broken.write_bytes(good)
    os.utime(broken, ns=(1, 1))
    assert "cannot be read" not in look(bench, source.find())


def test_the_same_pictures_are_decoded_once(root, bench, monkeypatch):
    source = on_machine("cats", root)
    words = look(bench, source.find())
    monkeypatch.setattr(pictures_module.Pictures, "open", None)
    assert look(bench, source.find()) == words


def test_names_are_shown_as_text(tmp_path, bench):
    files = {f"<b>bold/{i}.png": png(i) for i in range(20)} | {"<i>/0.png": png(), "<i>/<u>.png": b"none"}
    words = look(bench, uploads(zipped(tmp_path / "photos.zip", files)).find())
    assert "2 classes: &lt;b&gt;bold 20, &lt;i&gt; 2." in words
    assert "&lt;u&gt;.png" in words
    assert "<i>" not in words.replace("&lt;i&gt;", "")


# What a run is given


ODD = ("🦖.png", "two\nlines.png", "-rf.png", ".hidden.png", "a b;c&d.png", "x" * 190 + ".png", "same.png", "same.png")


def test_uploads_of_all_names_go_into_the_run(tmp_path):
    files = []
    for i, name in enumerate(ODD):
        files.append(tmp_path / f"cache{i}" / name)  # as gradio has it: a folder for each content
        files[-1].parent.mkdir()
        files[-1].write_bytes(png(20 * i))
    source = uploads(*files)
    assert len(source.find()) == len(ODD)
    run = run_on(source, tmp_path / "runs")
    assert run.status()["state"] == "finished", run.status()
    assert len(find(run.folder / "data" / "images")) == len(ODD)
    # A run that goes on looks in its own folder.
    assert run.config["data"] == [str(run.folder / "data" / "images")]


def test_a_single_hidden_picture_is_not_lost(tmp_path):
    (tmp_path / ".one.png").write_bytes(png())
    source = uploads(tmp_path / ".one.png")
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(source.find()) == 1


def test_the_same_file_twice_is_one(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    assert len(uploads(tmp_path / "a.png", tmp_path / "a.png").find()) == 1


def test_zips_and_pictures_may_come_together(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    files = {"cats/0.png": png(0), "cats/1.png": png(1), "dogs/0.png": png(2)}
    archives = [zipped(tmp_path / name, files) for name in ("one.zip", "two.zip")]
    source = uploads(tmp_path / "a.png", *archives)
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(source.find()) == 7
    both = uploads(*archives)
    both.bring(tmp_path / "other")
    assert find(both.paths(tmp_path / "other")).classes == both.find().classes == ("cats", "dogs")


def test_copies_are_made_where_links_cannot_be(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.png").write_bytes(png())
    source = uploads(tmp_path / "a.png")
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == 1


def test_three_thousand_pictures_are_no_matter(tmp_path, bench):
    content = png()
    for i in range(3000):
        (tmp_path / f"{i:04}.png").write_bytes(content)
    files = list(tmp_path.iterdir())
    random.Random(0).shuffle(files)
    source = uploads(*files)
    pictures = source.find()
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(pictures) == 3000
    assert "<b>3,000 pictures</b>, of which 400 were looked at" in look(bench, pictures)


def test_the_demo_is_what_its_words_say(bench):
    source = Source(DEMO, ("left.zip",), "left/over", "left/over")
    assert (source.find(), source.names(), source.paths(Path("data")), source.held_out_path) == (None, [], (), "")
    source.bring(Path("nowhere"))
    assert not Path("nowhere").exists()
    assert demo_words().startswith(f"{len(demo('train'))} crops of 18 pictures")


def test_a_held_out_folder_of_another_place_does_not_matter_to_uploads(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    source = Source(UPLOAD, (str(tmp_path / "a.png"),), held_out="typed before")
    assert len(source.find()) == 1
    assert source.held_out_path == ""


# Pictures with their depth, or a teacher that tells it

HEAD = "facebook/dpt-dinov2-small-nyu"


def npy(metres: float, size: tuple[int, int] = (24, 16)) -> bytes:
    np.save(content := io.BytesIO(), np.full(size[::-1], metres, np.float32))
    return content.getvalue()


def png16(millimetres: int, size: tuple[int, int] = (24, 16)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full(size[::-1], millimetres, np.uint16)).save(content, "PNG")
    return content.getvalue()


ROOMS = {
    **{f"rgb/{i}.png": png(60 * i) for i in range(3)},
    "depth/0.png": png16(1500), "depth/1.npy": npy(2.5), "depth/2.png": png16(9000), "depth/2.npy": npy(3),
    "meta.json": b'{"intrinsics": {"fx": 20, "fy": 20, "cx": 12, "cy": 8}}', "notes.txt": b"beside",
}  # fmt: skip


def brought(source: DepthSource, folder: Path) -> Path:
    source.bring(folder)
    (path,) = source.paths(folder)
    return Path(path)


@pytest.mark.parametrize("top", ["", "my rooms/", "a/b/", "win\\rooms\\", "/", "My/__MACOSX2/"])
def test_a_zip_with_depth_becomes_a_folder_with_depth(top, tmp_path):
    files = {f"{top}{name}": content for name, content in ROOMS.items()} | {"__MACOSX/rgb/._0.png": b"", "README": b""}
    source = DepthSource(uploads(zipped(tmp_path / "rooms.zip", files)))
    assert (source.find(), source.count(), source.names()) == (None, 3, ["rooms.zip"])
    folder = brought(source, tmp_path / "runs" / "a" / "data")
    assert folder == tmp_path / "runs" / "a" / "data" / "rooms"
    depths = [pair.open()[1] for pair in find_pairs(folder)]
    assert [float(depth.mean()) for depth in depths] == [1.5, 2.5, 3]  # an array wins over a PNG
    assert all(depth.shape == (16, 24) for depth in depths)
    assert intrinsics(folder)["fx"] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rooms.zip", "runs"]
    assert len([path for path in (tmp_path / "runs").rglob("*") if path.is_file()]) == 7


def test_a_zip_of_the_machine_is_taken_too(root, tmp_path):
    zipped(root / "rooms.zip", ROOMS)
    assert len(find_pairs(brought(DepthSource(on_machine("rooms.zip", root)), tmp_path / "data"))) == 3


def test_odd_names_stay_pairs_in_their_order(tmp_path):
    stems = ["a b", "a/../b1", "a_b", "x" * 150 + "7", "x" * 150 + "8", "A_B", "ü:*?<>|9", "-rf"]
    files = {f"rgb/{Path(stem).name}.JPG": png(20 * i) for i, stem in enumerate(stems)}
    files |= {f"depth/{Path(stem).name}.PNG": png16(1000 * i + 1000) for i, stem in enumerate(stems)}
    folder = brought(DepthSource(uploads(zipped(tmp_path / "rooms.zip", files))), tmp_path / "data")
    pairs = find_pairs(folder)
    assert len(pairs) == len(stems)
    for pair in pairs:
        picture, depth = pair.open()
        assert np.asarray(picture)[0, 0, 0] == 20 * (depth[0, 0] - 1)
    assert [pair.image.stem[-2:] for pair in pairs if pair.image.stem.startswith("xx")] == ["x7", "x8"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.png": png()}, "rgb"),
        ({"rgb/a.png": png()}, "rgb"),
        ({"rgb/a.png": png(), "depth/a.exr": b"x"}, "rgb"),
        ({"a/rgb/a.png": png(), "b/depth/a.png": png16(1)}, "rgb"),
        ({f"{top}/{kind}/a.png": png16(1) for top in "ab" for kind in ("rgb", "depth")}, "has 2 folders with rgb and"),
        ({**{f"rgb/{i}.png": png() for i in range(5)}, "depth/3.npy": npy(1)},
         "0.png, 1.png, 2.png"),
        ({"rgb/a.png": png(), "depth/a.npy": bytes(30_000_000)}, "would grow"),
    ],
)  # fmt: skip
def test_a_zip_that_no_probe_can_learn_from_is_told(files, told, tmp_path):
    source = DepthSource(uploads(zipped(tmp_path / "rooms.zip", files)))
    for refuse in (source.find, source.count):
        assert told in refused(DinovizError, refuse)
    with pytest.raises(DinovizError):
        source.bring(tmp_path / "data")


def test_what_grows_too_much_in_all_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "GROWTH_FROM_BYTES", 1_000_000)
    files = {f"{kind}/{i}.{end}": bytes(100_000) for i in range(8) for kind, end in (("rgb", "png"), ("depth", "npy"))}
    file = zipped(tmp_path / "rooms.zip", files)
    assert "rooms.zip would grow" in refused(DinovizError, DepthSource(uploads(file)).find)


@pytest.mark.parametrize("content", [b"", b"no zip"])
def test_what_is_no_zip_has_no_depth_either(content, tmp_path):
    (tmp_path / "rooms.zip").write_bytes(content)
    for teacher in ("", HEAD):
        told = refused(DinovizError, DepthSource(uploads(tmp_path / "rooms.zip"), teacher).find)
        assert told == "rooms.zip is damaged or not a zip file."


def test_a_damaged_part_of_a_zip_with_depth_is_told(tmp_path):
    file = zipped(tmp_path / "rooms.zip", ROOMS)
    content = bytearray(file.read_bytes())
    content[content.index(b"depth/1.npy") + 60] ^= 255
    file.write_bytes(content)
    told = refused(DinovizError, DepthSource(uploads(file)).bring, tmp_path / "data")
    assert told == "depth/1.npy: this part of the zip file is damaged."


def test_without_depth_or_a_teacher_one_is_told_what_to_do(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rooms = [zipped(tmp_path / name, ROOMS) for name in ("a.zip", "b.zip")]
    for source in (Source(DEMO), uploads(tmp_path / "a.png"), uploads(*rooms)):
        assert refused(DinovizError, DepthSource(source).find).startswith("These pictures have no depth: choose who")
    assert "There are no pictures yet" in refused(DinovizError, DepthSource(uploads()).find)


def test_a_teacher_is_shown_pictures_of_every_kind(root, tmp_path):
    zipped(tmp_path / "photos.zip", {"a/1.png": png(0), "b/1.png": png(50), "b/2.png": png(100)})
    (root / "some.txt").write_text("cats/000.png\ncats/002.png\n")
    kinds = [
        (Source(DEMO), 18, [], "demo"),
        (uploads(tmp_path / "photos.zip"), 3, ["photos.zip"], "photos"),
        (uploads(tmp_path / "photos.zip", root / "cats" / "000.png"), 4, ["images"], "images"),
        (uploads(root / "cats" / "000.png"), 1, ["000.png"], "images"),
        (on_machine("some.txt", root), 2, ["some.txt"], "some"),
    ]
    for i, (source, count, names, name) in enumerate(kinds):
        taught = DepthSource(source, HEAD)
        assert (len(taught.find()), taught.count(), taught.names()) == (count, count, names)
        folder = brought(taught, tmp_path / str(i))
        assert folder == tmp_path / str(i) / name
        assert len(find(folder)) == count
    assert sorted(path.name for path in (tmp_path / "1" / "photos").iterdir()) == ["1.png", "2-1.png", "2.png"]
    assert np.asarray(Image.open(tmp_path / "0" / "demo" / "chelsea.png")).shape == (300, 451, 3)  # whole
    taught = DepthSource(on_machine("cats", root), HEAD)
    assert (len(taught.find()), brought(taught, tmp_path / "none")) == (4, root / "cats")
    assert not (tmp_path / "none").exists()


def test_a_picture_that_cannot_be_unpacked_is_left_for_the_teacher_to_count(tmp_path):
    file = zipped(tmp_path / "photos.zip", {"1.png": png(0), "2.png": png(50)})
    content = bytearray(file.read_bytes())
    content[content.index(b"2.png") + 20] ^= 255
    file.write_bytes(content)
    folder = brought(DepthSource(uploads(file), HEAD), tmp_path / "data")
    assert [path.stat().st_size > 0 for path in sorted(folder.iterdir())] == [True, False]


def test_a_teacher_is_not_asked_about_what_has_depth(root, tmp_path):
    rgbd(root / "rooms")
    for source in (on_machine("rooms", root), uploads(zipped(tmp_path / "rooms.zip", ROOMS))):
        assert "has depth" in refused(DinovizError, DepthSource(source, HEAD).find)
    # Held out, depth that was measured says how good the teacher's is.
    assert len(DepthSource(on_machine("cats", root, held_out="rooms"), HEAD).find()) == 4
    assert "RGB-D folder" in refused(DinovizError, DepthSource(on_machine("cats", root, held_out="cats"), HEAD).find)


def test_a_teacher_is_shown_nothing_from_outside(root, tmp_path):
    (root / "dogs").mkdir()
    (root / "dogs" / "1.png").write_bytes(png())
    (root / "dogs" / ".link.png").symlink_to(tmp_path / HIDDEN)  # the run would find it
    assert "lies outside" in refused(DinovizError, DepthSource(on_machine("dogs", root), HEAD).find)
    for path in ("..", "/etc", "../closed"):
        assert "is not below" in refused(DinovizError, DepthSource(on_machine(path, root), HEAD).find)
        assert "is not below" in refused(DinovizError, DepthSource(on_machine(path, root)).find)


@pytest.fixture
def runs(tmp_path, monkeypatch, tiny_folders) -> Path:
    """A run with a probe, and one that has none yet."""
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    run = Run.create("taught", "probe", {"model": str(tiny_folders["dinov2"])})
    save_probe(run.export_folder / "probe.safetensors", tiny_folders["dinov2"])
    Run.create("begun", "probe", {})
    return tmp_path / "runs"


def test_who_may_teach(runs, monkeypatch):
    bench = Workbench(Settings(cache_bytes=2**24))
    bench.hub_answers = False
    assert [value for _, value in teachers(bench, "embedded")] == ["own", str(runs / "taught")]
    assert [value for _, value in teachers(bench, "dinov2-small")][:1] == ["own"]
    assert ("shipped" in dict(map(reversed, teachers(bench, "dinov2-small")))) == SHIPPED.is_file()
    bench.hub_answers = True
    offered = [value for _, value in teachers(bench, "embedded")]
    assert offered[1:3] == [HEAD, "facebook/dpt-dinov2-small-kitti"]
    assert len(offered) == 10
    public = Workbench(Settings(cache_bytes=2**24, public=True))
    public.hub_answers = True
    offered = [value for _, value in teachers(public, "embedded")]
    assert offered[0] == "own"
    assert len(offered) == 7  # neither runs nor what is too large
    assert not any("giant" in value for value in offered)


def test_a_teacher_by_what_is_typed(runs, root, tiny_folders, bench):
    source = on_machine("cats", root)
    save_probe(root / "p.safetensors", tiny_folders["dinov2"])
    (root / "head").mkdir()
    (root / "head" / "config.json").write_text("{}")
    for typed, teacher in (
        ("own", ""), (None, ""), (" ", ""), (HEAD, HEAD), ("taught", str(runs / "taught")),
        (str(runs / "taught"), str(runs / "taught")), (" p.safetensors ", str(root / "p.safetensors")),
        (str(root / "p.safetensors"), str(root / "p.safetensors")), ("head", str(root / "head")),
    ):  # fmt: skip
        assert teacher_of(bench, source, typed) == teacher
    if SHIPPED.is_file():
        assert teacher_name(teacher_of(bench, source, "shipped")) == "the shipped probe"
    assert (teacher_name(HEAD), teacher_name(str(runs / "taught"))) == (HEAD, "taught")


def test_what_is_no_teacher_is_told(runs, root, tmp_path, tiny_folders, bench):
    source = on_machine("cats", root)
    save_probe(tmp_path / "outside.safetensors", tiny_folders["dinov2"])
    (root / "link").mkdir()
    (root / "link" / "config.json").symlink_to(tmp_path / HIDDEN)
    (root / "no.safetensors").write_bytes(b"no probe")
    for typed, told in (
        ("nonsense", "nonsense: there is no such file or folder below"), ("someone/dpt-nyu", "there is no such file"),
        ("../outside.safetensors", "is not below"), (str(tmp_path / "outside.safetensors"), "is not below"),
        ("/etc", "is not below"), ("a\0b", "is not below"), ("~nobody-is-called-this", "is not below"),
        ("x" * 5000, "there is no such file or folder"), ("link", "lies outside"),
        ("cats", "cats is no teacher: no depth probe's file or run, nor a published head's folder."),
        ("begun", "run begun"), (str(runs / "begun"), "no finished depth probe"),
        ("../runs/begun", "is not below"),
    ):  # fmt: skip
        told_of = refused(DinovizError, teacher_of, bench, source, typed)
        assert told in told_of, typed
        assert len(told_of) < 400
    assert "cannot be opened as a depth probe" in refused(ProbeError, teacher_of, bench, source, "no.safetensors")
    without = Source(DEMO)
    assert "are not open to this page" in refused(DinovizError, teacher_of, bench, without, "p.safetensors")


def test_strangers_choose_of_the_list_alone(runs, root):
    public = Workbench(Settings(cache_bytes=2**24, public=True))
    public.hub_answers = False
    source = Source(DEMO)
    assert teacher_of(public, source, "own") == ""
    for typed in (str(runs / "taught"), "taught", str(SHIPPED), str(root), HEAD, "facebook/dpt-dinov2-giant-nyu"):
        told = refused(DinovizError, teacher_of, public, source, typed)
        assert told == "There is no such teacher here: choose one of the list."
