"""Training data of the page: uploads of all kinds, and of the machine only what the operator allowed."""

import os
import random
import struct
from pathlib import Path

import pytest

from dinoviz.errors import DinovizError
from dinoviz.ui.jobs import Job
from dinoviz.ui.train.image_data import DEMO, UPLOAD, Source, cached_preview, check_broken, demo_words, preview_words
from tests.training.tiny_runs import settings, write_images
from tests.ui.train.data_files import on_machine, patched, png, uploads, zipped
from training.data import sources
from training.data.demo import demo
from training.data.sources import find
from training.pretrain import pretrain
from training.runs.run import Run


def refusal(source: Source) -> str:
    """The error of a source without pictures that may be read: short, on one line."""
    with pytest.raises(DinovizError) as error:
        source.find()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def preview_of(bench, pictures) -> str:
    job = Job(lambda job: cached_preview(bench, pictures, job), None)
    list(job.watch(0.01))
    return preview_words(job.result())


# Folders of the machine


@pytest.mark.parametrize("path", ["cats", "./cats/", "cats/../cats", "  cats  ", "ABSOLUTE"])
def test_a_folder_below_an_allowed_one_is_found(path, root):
    source = on_machine(root / "cats" if path == "ABSOLUTE" else path, root)
    assert len(source.find()) == 4
    assert source.paths(Path("runs/a/data")) == (str(root / "cats"),)


def test_the_allowed_folder_itself_is_found_and_relative_names_become_absolute(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(on_machine(".", Path()).find()) == 4
    assert Path(on_machine("cats", Path()).paths(Path("data"))[0]).is_absolute()


def test_each_of_several_allowed_folders_is_searched(root, tmp_path):
    write_images(tmp_path / "second" / "dogs", 3)
    assert len(on_machine("dogs", root, tmp_path / "second").find()) == 3


@pytest.mark.parametrize(
    "path", ["..", "../closed", "/etc", "/etc/hostname", "cats/../../closed", "~", "~root", "~nobody-is-called-this",
             "cats\0", "/", "../open2", "  "],
)  # fmt: skip
def test_no_other_path_is_read(path, root, tmp_path):
    write_images(tmp_path / "open2", 1)  # its name begins like the allowed one
    refusal(on_machine(path, root))
    with pytest.raises(DinovizError):
        on_machine(path, root).paths(Path("data"))
    if path.strip():
        refusal(on_machine("cats", root, held_out=path))


def test_the_answer_does_not_reveal_what_exists_outside(root):
    there, missing = (refusal(on_machine(path, root)) for path in ("../closed", "../nothing"))
    assert there.replace("closed", "nothing") == missing


@pytest.mark.parametrize("path", ["nothing", "x" * 5000, "a/" * 2500, "two\nlines"])
def test_a_missing_path_is_a_short_error(path, root):
    assert path.split("\n")[0][:7] in refusal(on_machine(path, root))


def test_links_do_not_lead_out(root, tmp_path):
    for folder in ("dogs", "birds"):
        (root / folder).mkdir()
    (root / "folder").symlink_to(tmp_path / "closed")
    (root / "dogs" / "link.png").symlink_to(tmp_path / "hidden.png")
    (root / "birds" / "in").symlink_to(tmp_path / "closed")
    refusal(on_machine("folder", root))
    assert "link.png" in refusal(on_machine("dogs", root))
    assert "hidden.png" in refusal(on_machine("birds", root))
    (root / "dogs" / "link.png").unlink()
    (root / "dogs" / "cat.png").symlink_to(root / "cats" / "000.png")  # within
    assert len(on_machine("dogs", root).find()) == 1


def test_without_allowed_folders_none_is_read(root):
    assert str(root) not in refusal(on_machine(root / "cats"))


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_list_names_only_allowed_files(suffix, root, tmp_path):
    file = root / f"some.{suffix}"
    file.write_text("cats/000.png\n")
    assert len(on_machine(file.name, root).find()) == 1
    for outside in (tmp_path / "hidden.png", "../hidden.png", "/etc/hostname", "x" * 5000, "null\0byte"):
        file.write_text(f"cats/000.png\n{outside}\n")
        refusal(on_machine(file.name, root))


# Uploads


def test_an_uploaded_list_reads_only_allowed_files(root, tmp_path):
    mine, yours = tmp_path / "cache" / "mine", tmp_path / "cache" / "yours"
    mine.mkdir(parents=True)
    yours.mkdir()
    (yours / "secret.png").write_bytes(png())
    file = mine / "list.txt"
    public = set()
    for line in ("/etc/hostname", "/etc/nothing", yours / "secret.png", "../yours/secret.png"):
        file.write_text(f"{line}\n")
        public.add(refusal(uploads(file)))
    assert len(public) == 1, "the answer is the same whether a file exists or not"
    for line in (yours / "secret.png", "../yours/secret.png", tmp_path / "hidden.png"):
        file.write_text(f"{line}\n")
        refusal(uploads(file, roots=(root,)))
    file.write_text(f"{root / 'cats' / '000.png'}\n")
    assert len(uploads(file, roots=(root,)).find()) == 1


@pytest.mark.parametrize("name", ["../../climbed.png", "a/../../../climbed.png", "..\\climbed2.png", "C:\\windows.png"])
def test_a_zip_with_paths_outside_of_itself_writes_nothing(tmp_path, name):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    refusal(uploads(zipped(inside / "photos.zip", {"0.png": png(), name: png(9)})))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["photos.zip"]


def locked(folder: Path) -> Path:
    file = zipped(folder / "locked.zip", {"a.png": png()})
    content = file.read_bytes()
    flags = {at: bytes([content[at] | 1]) for at in (6, content.rindex(b"PK\x01\x02") + 8)}
    return patched(file, flags)


def written(name: str, content: bytes):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


REFUSED = {
    "empty.zip": written("empty.zip", b"PK\5\6" + bytes(18)),
    "none.zip": written("none.zip", b""),
    "text.zip": written("text.zip", b"not a zip"),
    "notes.pdf": written("notes.pdf", b"%PDF"),
    "noend": written("noend", b""),
    "bomb.zip": lambda folder: zipped(folder / "bomb.zip", {"a.png": bytes(30_000_000)}),
    "locked.zip": locked,
    "texts.zip": lambda folder: zipped(folder / "texts.zip", {"a.md": b"", "b.md": b""}),
    "gone.zip": lambda folder: folder / "gone.zip",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_upload_without_pictures_is_refused_by_name(name, tmp_path):
    error = refusal(uploads(REFUSED[name](tmp_path)))
    assert name in error
    assert str(tmp_path) not in error


def test_nothing_uploaded_is_refused():
    refusal(uploads())


def test_a_zip_with_wrong_sizes_has_one_unreadable_picture(tmp_path, small_bench):
    file = zipped(tmp_path / "liar.zip", {"a.png": bytes(30_000_000), "b.png": png()})
    content = file.read_bytes()
    first = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02"))
    patched(file, dict.fromkeys((22, first + 24), struct.pack("<I", 1000)))
    assert "1 cannot be read (50.0%)" in preview_of(small_bench, uploads(file).find())


@pytest.fixture
def with_broken(tmp_path) -> Source:
    """100 pictures, of which every twentieth is unreadable."""
    files = {f"{i:02}.png": png(2 * i) if i % 20 else b"<img src=x>" for i in range(100)}
    return uploads(zipped(tmp_path / "photos.zip", files))


def test_too_many_unreadable_pictures_are_refused_before_the_run(with_broken, small_bench):
    pictures = with_broken.find()
    check_broken(small_bench, pictures, 0.03)  # there was no preview yet
    words = preview_of(small_bench, pictures)
    for expected in ("<b>100 pictures</b>", "5 cannot be read (5.0%)", "3%", "photos.zip/00.png", "2 more"):
        assert expected in words
    with pytest.raises(DinovizError, match=r"5 of 100 .*3%.*00\.png.*20\.png.*40\.png"):
        check_broken(small_bench, pictures, 0.03)
    check_broken(small_bench, pictures, 0.05)


def test_repaired_pictures_are_decoded_again(root, small_bench):
    picture = root / "cats" / "000.png"
    good = picture.read_bytes()
    picture.write_bytes(b"no picture")
    source = on_machine("cats", root)
    assert "1 cannot be read" in preview_of(small_bench, source.find())
    picture.write_bytes(good)
    os.utime(picture, ns=(1, 1))
    assert "cannot be read" not in preview_of(small_bench, source.find())


def test_the_same_pictures_are_decoded_once(root, small_bench, monkeypatch):
    source = on_machine("cats", root)
    words = preview_of(small_bench, source.find())
    monkeypatch.setattr(sources.Pictures, "open", None)
    assert preview_of(small_bench, source.find()) == words


def test_names_are_escaped(tmp_path, small_bench):
    files = {f"<b>bold/{i}.png": png(i) for i in range(20)} | {"<i>/0.png": png(), "<i>/<u>.png": b"none"}
    words = preview_of(small_bench, uploads(zipped(tmp_path / "photos.zip", files)).find())
    assert "2 classes: &lt;b&gt;bold 20, &lt;i&gt; 2." in words
    assert "&lt;u&gt;.png" in words
    assert "<i>" not in words


# The data of a run


def run_on(source: Source, runs: Path) -> Run:
    """A run as the page makes it; the uploads are removed before it starts."""
    data = runs / "a" / "data"
    config = settings(Path(), data=source.paths(data), epochs=0.5, batch=4, prototypes=8, knn_every=0.0)
    run = Run.create("a", "pretrain", config.to_dict(), root=runs)
    source.bring(data)
    for file in source.files:
        Path(file).unlink()
    pretrain(config, run)
    return run


def test_a_run_with_too_many_unreadable_pictures_fails_by_their_names(with_broken, tmp_path):
    with pytest.raises(DinovizError, match=r"photos\.zip/00\.png"):
        run_on(with_broken, tmp_path / "runs")
    status = Run(tmp_path / "runs" / "a").status()
    assert (status["state"], "5 of 100" in status["message"]) == ("failed", True)


ODD = ("🦖.png", "two\nlines.png", "-rf.png", ".hidden.png", "a b;c&d.png", "x" * 190 + ".png", "same.png", "same.png")


def test_a_run_trains_on_uploads_of_any_name(tmp_path):
    files = []
    for i, name in enumerate(ODD):
        files.append(tmp_path / f"cache{i}" / name)  # as in Gradio's cache: a folder for each content
        files[-1].parent.mkdir()
        files[-1].write_bytes(png(20 * i))
    source = uploads(*files)
    assert len(source.find()) == len(ODD)
    run = run_on(source, tmp_path / "runs")
    assert run.status()["state"] == "finished", run.status()
    assert len(find(run.folder / "data" / "images")) == len(ODD)
    assert run.config["data"] == [str(run.folder / "data" / "images")]


def test_hidden_and_repeated_uploads(tmp_path):
    (tmp_path / ".one.png").write_bytes(png())
    source = uploads(tmp_path / ".one.png", tmp_path / ".one.png")
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(source.find()) == 1


def test_zip_files_and_pictures_together(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    files = {"cats/0.png": png(0), "cats/1.png": png(1), "dogs/0.png": png(2)}
    archives = [zipped(tmp_path / name, files) for name in ("one.zip", "two.zip")]
    source = uploads(tmp_path / "a.png", *archives)
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(source.find()) == 7
    both = uploads(*archives)
    both.bring(tmp_path / "other")
    assert find(both.paths(tmp_path / "other")).classes == both.find().classes == ("cats", "dogs")


def test_uploads_are_copied_where_hard_links_fail(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.png").write_bytes(png())
    source = uploads(tmp_path / "a.png")
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == 1


def test_three_thousand_uploads(tmp_path, small_bench):
    content = png()
    for i in range(3000):
        (tmp_path / f"{i:04}.png").write_bytes(content)
    files = list(tmp_path.iterdir())
    random.Random(0).shuffle(files)
    source = uploads(*files)
    pictures = source.find()
    source.bring(tmp_path / "run")
    assert len(find(source.paths(tmp_path / "run"))) == len(pictures) == 3000
    words = preview_of(small_bench, pictures)
    assert "3,000 pictures" in words
    assert "400" in words  # that were decoded


def test_the_demo_ignores_other_values():
    source = Source(DEMO, ("left.zip",), "left/over", "left/over")
    assert (source.find(), source.names(), source.paths(Path("data")), source.held_out_path) == (None, [], (), "")
    source.bring(Path("nowhere"))
    assert not Path("nowhere").exists()
    assert str(len(demo("train"))) in demo_words()


def test_uploads_ignore_a_typed_held_out_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    source = Source(UPLOAD, (str(tmp_path / "a.png"),), held_out="typed before")
    assert len(source.find()) == 1
    assert source.held_out_path == ""
