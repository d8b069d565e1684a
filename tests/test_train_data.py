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

from dinoviz.errors import DinovizError
from dinoviz.ui.train_data import DEMO, FOLDER, UPLOAD, Source, check_broken, demo_words, in_words, surveyed
from dinoviz.ui.workbench import Job, Settings, Workbench
from tests.training.tiny_runs import refused, settings, write_images
from training import pictures as pictures_module
from training.data import demo
from training.pictures import find
from training.pretrain import pretrain
from training.runs import Run

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
    source = on_machine("rooms", root, held_out="rooms")
    assert (source.find(depth=True), source.pairs()) == (None, 2)
    for other in (Source(DEMO), uploads(root / "cats" / "000.png"), on_machine("", root), on_machine("cats", root),
                  on_machine("../closed", root), on_machine("rooms", root, held_out="cats")):  # fmt: skip
        refused(DinovizError, other.find, depth=True)
    (root / "rooms" / "rgb" / "0.png").unlink()
    (root / "rooms" / "rgb" / "0.png").symlink_to(tmp_path / HIDDEN)
    assert "lies outside" in refused(DinovizError, source.find, depth=True)
    assert "lies outside" in refused(DinovizError, source.pairs)


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


def test_a_zip_that_climbs_out_writes_nothing_and_can_be_learnt_from(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    names = [
        "../../climbed.png",
        "/absolute.png",
        "..\\climbed2.png",
        "C:\\windows.png",
        *(f"{i}.png" for i in range(8)),
    ]
    source = uploads(zipped(inside / "photos.zip", {name: png(20 * i) for i, name in enumerate(names)}))
    assert len(source.find()) == 12
    run = run_on(source, tmp_path / "runs")
    assert run.status()["state"] == "finished", run.status()
    assert [path.name for path in (run.folder / "data").rglob("*")] == ["photos.zip"]
    assert not [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(run.folder)]


def test_a_bomb_is_refused_before_it_is_opened(tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", {"a.png": bytes(30_000_000)})
    assert bomb.stat().st_size < 100_000
    assert "no image does" in refused(DinovizError, uploads(bomb).find)


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
        ("empty.zip", b"PK\5\6" + bytes(18), "empty.zip is empty, there are no images in it."),
        ("none.zip", b"", "none.zip is damaged, or not a zip file."),
        ("text.zip", b"not a zip", "text.zip is damaged, or not a zip file."),
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
    with pytest.raises(DinovizError, match=r"too many to go on: photos\.zip/00\.png"):
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
