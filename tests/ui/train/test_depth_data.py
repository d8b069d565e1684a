"""Training data of a depth probe: RGB-D folders and zip files, or pictures for which a teacher predicts depth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz.depth.probe import SHIPPED, ProbeError
from dinoviz.errors import DinovizError
from dinoviz.ui.access import Settings
from dinoviz.ui.train.depth_data import DepthSource, teacher_name, teacher_of, teachers
from dinoviz.ui.train.image_data import DEMO, Source
from dinoviz.ui.workbench import Workbench
from tests.training.depth.test_pseudo_labels import save_probe
from tests.ui.train.data_files import damaged, depth_npy, depth_png, on_machine, png, uploads, zipped
from training.data import zips
from training.data.sources import find
from training.depth.rgbd import find_pairs, intrinsics
from training.runs.run import Run

HEAD = "facebook/dpt-dinov2-small-nyu"
ROOMS = {
    **{f"rgb/{i}.png": png(60 * i) for i in range(3)},
    "depth/0.png": depth_png(1500), "depth/1.npy": depth_npy(2.5), "depth/2.png": depth_png(9000),
    "depth/2.npy": depth_npy(3),
    "meta.json": b'{"intrinsics": {"fx": 20, "fy": 20, "cx": 12, "cy": 8}}', "notes.txt": b"beside",
}  # fmt: skip


def refusal(source: DepthSource) -> str:
    with pytest.raises(DinovizError) as error:
        source.find()
    return str(error.value)


def rgbd(folder: Path) -> Path:
    """An RGB-D folder of two pictures."""
    for i in range(2):
        for name, content in ((f"rgb/{i}.png", png()), (f"depth/{i}.png", depth_png(1000))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def brought(source: DepthSource, folder: Path) -> Path:
    source.bring(folder)
    (path,) = source.paths(folder)
    return Path(path)


# Pictures with depth


def test_an_rgbd_folder_of_the_machine(root, tmp_path):
    rgbd(root / "rooms")
    source = DepthSource(on_machine("rooms", root, held_out="rooms"))
    assert (source.find(), source.count(), source.names()) == (None, 2, ["rooms"])
    assert brought(source, tmp_path / "data") == root / "rooms"
    assert not (tmp_path / "data").exists()
    without_depth = Source(DEMO), uploads(), uploads(root / "cats" / "000.png"), on_machine("cats", root)
    outside = on_machine("", root), on_machine("../closed", root), on_machine("/etc", root)
    held_out = (on_machine("rooms", root, held_out=path) for path in ("cats", "../closed"))
    for other in (*without_depth, *outside, *held_out):
        refusal(DepthSource(other))


def test_links_of_an_rgbd_folder_do_not_lead_out(root, tmp_path):
    rgbd(root / "rooms")
    (root / "rooms" / "rgb" / "0.png").unlink()
    (root / "rooms" / "rgb" / "0.png").symlink_to(tmp_path / "hidden.png")
    source = DepthSource(on_machine("rooms", root))
    for use in (source.find, source.count):
        with pytest.raises(DinovizError, match=r"0\.png|hidden\.png"):
            use()


@pytest.mark.parametrize("top", ["", "my rooms/", "a/b/", "win\\rooms\\", "/", "My/__MACOSX2/"])
def test_an_rgbd_zip_becomes_an_rgbd_folder(top, tmp_path):
    files = {f"{top}{name}": content for name, content in ROOMS.items()} | {"__MACOSX/rgb/._0.png": b"", "README": b""}
    source = DepthSource(uploads(zipped(tmp_path / "rooms.zip", files)))
    assert (source.find(), source.count(), source.names()) == (None, 3, ["rooms.zip"])
    folder = brought(source, tmp_path / "runs" / "a" / "data")
    assert folder == tmp_path / "runs" / "a" / "data" / "rooms"
    depths = [pair.open()[1] for pair in find_pairs(folder)]
    assert [float(depth.mean()) for depth in depths] == [1.5, 2.5, 3]  # an array is preferred to a PNG
    assert all(depth.shape == (16, 24) for depth in depths)
    assert intrinsics(folder)["fx"] == 20
    assert len([path for path in (tmp_path / "runs").rglob("*") if path.is_file()]) == 7


def test_odd_names_stay_pairs_in_their_order(tmp_path):
    stems = ["a b", "a/../b1", "a_b", "x" * 150 + "7", "x" * 150 + "8", "A_B", "ü:*?<>|9", "-rf"]
    files = {f"rgb/{Path(stem).name}.JPG": png(20 * i) for i, stem in enumerate(stems)}
    files |= {f"depth/{Path(stem).name}.PNG": depth_png(1000 * i + 1000) for i, stem in enumerate(stems)}
    pairs = find_pairs(brought(DepthSource(uploads(zipped(tmp_path / "rooms.zip", files))), tmp_path / "data"))
    assert len(pairs) == len(stems)
    for pair in pairs:
        picture, depth = pair.open()
        assert np.asarray(picture)[0, 0, 0] == 20 * (depth[0, 0] - 1)
    assert [pair.image.stem[-2:] for pair in pairs if pair.image.stem.startswith("xx")] == ["x7", "x8"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"a.png": png()}, "rgb"),
        ({"rgb/a.png": png()}, "rgb"),
        ({"rgb/a.png": png(), "depth/a.exr": b"x"}, "rgb"),
        ({"a/rgb/a.png": png(), "b/depth/a.png": depth_png(1)}, "rgb"),
        ({f"{top}/{kind}/a.png": depth_png(1) for top in "ab" for kind in ("rgb", "depth")}, "2 folders"),
        ({**{f"rgb/{i}.png": png() for i in range(5)}, "depth/3.npy": depth_npy(1)}, "4 of 5"),
        ({"rgb/a.png": png(), "depth/a.npy": bytes(30_000_000)}, "rooms.zip"),
    ],
)
def test_a_zip_without_pairs_is_refused(files, named, tmp_path):
    source = DepthSource(uploads(zipped(tmp_path / "rooms.zip", files)))
    for use in (source.find, source.count, lambda: source.bring(tmp_path / "data")):
        with pytest.raises(DinovizError, match=named):
            use()


def test_a_zip_that_grows_too_much_in_all_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "GROWTH_FROM_BYTES", 1_000_000)
    files = {f"{kind}/{i}.{end}": bytes(100_000) for i in range(8) for kind, end in (("rgb", "png"), ("depth", "npy"))}
    assert "rooms.zip" in refusal(DepthSource(uploads(zipped(tmp_path / "rooms.zip", files))))


@pytest.mark.parametrize("teacher", ["", HEAD])
def test_a_damaged_zip_is_refused(teacher, tmp_path):
    (tmp_path / "rooms.zip").write_bytes(b"no zip")
    assert "rooms.zip" in refusal(DepthSource(uploads(tmp_path / "rooms.zip"), teacher))


def test_a_damaged_part_of_an_rgbd_zip_is_named(tmp_path):
    file = damaged(zipped(tmp_path / "rooms.zip", ROOMS), "depth/1.npy", 60)
    with pytest.raises(DinovizError, match=r"depth/1\.npy"):
        DepthSource(uploads(file)).bring(tmp_path / "data")


# Pictures for a teacher


def test_a_teacher_gets_pictures_of_every_source(root, tmp_path):
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
        labelled = DepthSource(source, HEAD)
        assert (len(labelled.find()), labelled.count(), labelled.names()) == (count, count, names)
        folder = brought(labelled, tmp_path / str(i))
        assert folder == tmp_path / str(i) / name
        assert len(find(folder)) == count
    assert sorted(path.name for path in (tmp_path / "1" / "photos").iterdir()) == ["1.png", "2-1.png", "2.png"]
    assert np.asarray(Image.open(tmp_path / "0" / "demo" / "chelsea.png")).shape == (300, 451, 3)  # whole
    labelled = DepthSource(on_machine("cats", root), HEAD)
    assert (len(labelled.find()), brought(labelled, tmp_path / "none")) == (4, root / "cats")
    assert not (tmp_path / "none").exists()


def test_a_picture_that_cannot_be_unpacked_stays_as_an_empty_file(tmp_path):
    """So that the run counts it among the unreadable ones."""
    file = damaged(zipped(tmp_path / "photos.zip", {"1.png": png(0), "2.png": png(50)}), "2.png", 20)
    folder = brought(DepthSource(uploads(file), HEAD), tmp_path / "data")
    assert [path.stat().st_size > 0 for path in sorted(folder.iterdir())] == [True, False]


def test_a_teacher_does_not_get_pictures_with_depth(root, tmp_path):
    rgbd(root / "rooms")
    for source in (on_machine("rooms", root), uploads(zipped(tmp_path / "rooms.zip", ROOMS))):
        refusal(DepthSource(source, HEAD))
    # Held out, measured depth evaluates the probe.
    assert len(DepthSource(on_machine("cats", root, held_out="rooms"), HEAD).find()) == 4
    refusal(DepthSource(on_machine("cats", root, held_out="cats"), HEAD))


def test_a_teacher_gets_nothing_from_outside(root, tmp_path):
    (root / "dogs").mkdir()
    (root / "dogs" / "1.png").write_bytes(png())
    (root / "dogs" / ".link.png").symlink_to(tmp_path / "hidden.png")  # the run would find it
    for path in ("dogs", "..", "/etc", "../closed"):
        refusal(DepthSource(on_machine(path, root), HEAD))


# Teachers


@pytest.fixture
def runs(tmp_path, monkeypatch, tiny_folders) -> Path:
    """A run with a finished probe, `done`, and one without, `begun`."""
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    run = Run.create("done", "probe", {"model": str(tiny_folders["dinov2"])})
    save_probe(run.export_folder / "probe.safetensors", tiny_folders["dinov2"])
    Run.create("begun", "probe", {})
    return tmp_path / "runs"


def offered(bench: Workbench, model: str = "embedded") -> list[str]:
    return [value for _, value in teachers(bench, model)]


def test_the_list_of_teachers(runs, small_bench):
    small_bench.hub_answers = False
    assert offered(small_bench) == ["own", str(runs / "done")]
    assert ("shipped" in offered(small_bench, "dinov2-small")) == SHIPPED.is_file()
    small_bench.hub_answers = True
    assert offered(small_bench)[1:3] == [HEAD, "facebook/dpt-dinov2-small-kitti"]
    assert len(offered(small_bench)) == 10
    public = Workbench(Settings(cache_bytes=2**24, public=True))
    public.hub_answers = True
    assert len(offered(public)) == 7  # neither runs nor large models
    assert not any("giant" in value for value in offered(public))


def test_typed_teachers(runs, root, tiny_folders, small_bench):
    source = on_machine("cats", root)
    save_probe(root / "p.safetensors", tiny_folders["dinov2"])
    (root / "head").mkdir()
    (root / "head" / "config.json").write_text("{}")
    for typed, teacher in (
        ("own", ""), (None, ""), (" ", ""), (HEAD, HEAD), ("done", str(runs / "done")),
        (str(runs / "done"), str(runs / "done")), (" p.safetensors ", str(root / "p.safetensors")),
        (str(root / "p.safetensors"), str(root / "p.safetensors")), ("head", str(root / "head")),
    ):  # fmt: skip
        assert teacher_of(small_bench, source, typed) == teacher
    if SHIPPED.is_file():
        assert teacher_of(small_bench, source, "shipped") == str(SHIPPED)
    assert (teacher_name(HEAD), teacher_name(str(runs / "done"))) == (HEAD, "done")


def test_other_typed_teachers_are_refused(runs, root, tmp_path, tiny_folders, small_bench):
    save_probe(tmp_path / "outside.safetensors", tiny_folders["dinov2"])
    (root / "link").mkdir()
    (root / "link" / "config.json").symlink_to(tmp_path / "hidden.png")
    (root / "no.safetensors").write_bytes(b"no probe")
    for typed in (
        "nonsense", "someone/dpt-nyu", "../outside.safetensors", str(tmp_path / "outside.safetensors"), "/etc", "a\0b",
        "~nobody-is-called-this", "x" * 5000, "link", "cats", "begun", str(runs / "begun"), "../runs/begun",
    ):  # fmt: skip
        with pytest.raises(DinovizError) as error:
            teacher_of(small_bench, on_machine("cats", root), typed)
        assert len(str(error.value)) < 400
    with pytest.raises(ProbeError):
        teacher_of(small_bench, on_machine("cats", root), "no.safetensors")
    with pytest.raises(DinovizError):  # no folder is allowed
        teacher_of(small_bench, Source(DEMO), "p.safetensors")


def test_a_public_page_takes_only_listed_teachers(runs, root):
    public = Workbench(Settings(cache_bytes=2**24, public=True))
    public.hub_answers = False
    assert teacher_of(public, Source(DEMO), "own") == ""
    errors = set()
    for typed in (str(runs / "done"), "done", str(SHIPPED), str(root), HEAD, "facebook/dpt-dinov2-giant-nyu"):
        with pytest.raises(DinovizError) as error:
            teacher_of(public, Source(DEMO), typed)
        errors.add(str(error.value))
    assert len(errors) == 1, "the answer does not reveal what exists"
