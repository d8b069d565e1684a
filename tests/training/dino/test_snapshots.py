"""Evaluation during training: k-NN equals the stand-alone evaluation, and snapshots show structure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinoviz
from tests.training.tiny_runs import arrays, begin, settings, write_images
from training.data.dataset import DataError, Decoded, find
from training.dino import snapshots as monitor
from training.evaluate import knn, knn_leave_one_out
from training.pretrain import pretrain


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 64, classes=True)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("held-out"), 36, classes=True)


@pytest.fixture(scope="module")
def run(images, held_out, tmp_path_factory):
    """Four epochs of four steps, watched in different rhythms."""
    config = settings(
        images, validation=str(held_out), epochs=4.0, knn_every=1.0, snapshot_every=1.5, lr=0.02, teacher_momentum=0.8,
        store_size=32,
    )  # fmt: skip
    run = begin(config, tmp_path_factory.mktemp("runs"))
    pretrain(config, run)
    return run


def features(backbone, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """CLS tokens of whole images at 16 px, one by one, and their classes, independent of `monitor`."""
    pictures = find(folder)
    rows = []
    for i in range(len(pictures)):
        kept = pictures.open(i).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(kept).copy()).permute(2, 0, 1)[None].float() / 255
        small = torch.nn.functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        rows.append(backbone.tokens(small)[0, 0].numpy())
    return np.stack(rows), pictures.labels


def test_knn_of_the_run_equals_knn_of_embedded_features(run, images, held_out):
    backbone = dinoviz.load(run.folder, device="cpu", dtype=torch.float32)
    (keys, labels), (queries, truth) = features(backbone, images), features(backbone, held_out)
    wanted = knn(keys, labels, queries, truth, k=20, temperature=0.07, classes=18)
    assert 0 < wanted < 1
    assert run.metrics()[-1] == {"step": 16, "epoch": 4.0, "knn": pytest.approx(wanted, abs=1e-9)}


def test_held_out_images_of_other_classes_use_leave_one_out(run, images, held_out, tmp_path):
    for name in ("brick", "camera"):
        (tmp_path / name).symlink_to(held_out / name)
    (tmp_path / "others").symlink_to(held_out / "coins")
    backbone = dinoviz.load(run.folder, device="cpu", dtype=torch.float32)
    neighbours = monitor.Neighbours(Decoded(find(images), 32), Decoded(find(tmp_path), 32), 16, seed=0)
    queries, truth = features(backbone, tmp_path)
    wanted = knn_leave_one_out(queries, truth, k=20, temperature=0.07, classes=3)
    assert neighbours.accuracy(backbone) == pytest.approx(wanted, abs=1e-9)


def test_images_for_knn_need_classes(images, tmp_path):
    with pytest.raises(DataError, match="k-NN"):
        monitor.Neighbours(Decoded(find(images), 32), Decoded(find(write_images(tmp_path / "flat", 4)), 32), 16, seed=0)


def test_each_rhythm_is_its_own(run):
    """k-NN at 4, 8, 12, 16; snapshots at 6, 12; both at the first and the last step."""
    assert [record["step"] for record in run.metrics() if "knn" in record] == [0, 4, 8, 12, 16]
    assert sorted(p.name for p in (run.folder / "snapshots").glob("step-*")) == [
        f"step-{step:08}" for step in (0, 6, 12, 16)
    ]


def test_with_0_knn_is_evaluated_at_the_end_and_snapshots_are_taken_at_both_ends(images, held_out, tmp_path):
    config = settings(images, validation=str(held_out), epochs=1.0, knn_every=0.0, snapshot_every=0.0)
    run = begin(config, tmp_path)
    pretrain(config, run)
    assert [record["step"] for record in run.metrics() if "knn" in record] == [4]
    assert sorted(p.name for p in (run.folder / "snapshots").glob("step-*")) == ["step-00000000", "step-00000004"]


def test_snapshots_show_something_and_change(run):
    for step in (0, 6, 12, 16):
        folder = run.folder / "snapshots" / f"step-{step:08}"
        names = {f"{kind}-{i}.png" for kind in ("attention", "pca") for i in range(4)} | {"arrays.npz"}
        assert {p.name for p in folder.iterdir()} == names | {"export"}
        for path in folder.glob("*.png"):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            assert max(pixels.shape) <= 256
            assert pixels.std() > 5, path  # of 255: no blank picture
    first, last = arrays(run, 0), arrays(run, 16)
    assert first.keys() == {f"{kind}_{i}" for kind in ("attention", "pca") for i in range(4)}
    for name, before in first.items():
        assert before.shape == ((2, 4, 4) if "attention" in name else (4, 4, 3))
        assert np.isfinite(before).all()
        assert before.std() > 0
        # Attention is a share that 16 patches and the CLS token divide among them.
        assert np.abs(last[name] - before).max() > (1e-4 if "attention" in name else 1e-2)
        if "attention" in name:
            assert (before.sum((1, 2)) < 1).all()
            assert (before > 0).all()


def test_probe_images_may_be_ones_own(images, tmp_path, astronaut):
    astronaut.save(tmp_path / "a.png")
    config = settings(images, probe_images=(str(tmp_path / "a.png"),), epochs=0.25)
    run = begin(config, tmp_path)
    pretrain(config, run)
    assert arrays(run, 0).keys() == {"attention_0", "pca_0"}


def test_an_evaluation_does_not_change_the_run(images, held_out, tmp_path):
    """The losses equal those of a run without evaluation."""
    found = []
    for every in (0.0, 0.25):
        config = settings(images, validation=str(held_out), epochs=1.0, knn_every=every, snapshot_every=every)
        run = begin(config, tmp_path, f"every-{every}")
        pretrain(config, run)
        found.append([record["loss"] for record in run.metrics() if "loss" in record])
    assert found[0] == found[1]


def test_dinoviz_opens_each_snapshot(run, images):
    """The network of the last snapshot is the exported one, in half precision; that of the first is another."""
    networks = run.networks(snapshots=True)
    assert [folder.name for folder in networks] == [run.folder.name, *(f"step-{step:08}" for step in (0, 6, 12, 16))]
    picture = find(images).open(0)
    last, first, *_, again = (dinoviz.load(folder, device="cpu").encode(picture, 32).cls for folder in networks)
    assert np.abs(last - again).max() < 5e-3 < np.abs(last - first).max()
    assert dinoviz.load(networks[1]).name == f"{run.folder.name} at step 0"


def test_the_probes_themselves_lie_beside_the_snapshots(run):
    assert len(list((run.folder / "snapshots").glob("probe-*.png"))) == 4


def test_a_share_of_labelled_data_is_kept_out_for_knn(tmp_path):
    """The neighbours are training images, which do not include the queries."""
    folder = tmp_path / "labelled"
    for name in ("a", "b"):
        write_images(folder / name, 12)
    config = settings(folder, validation_share=0.25, epochs=0.5)
    run = begin(config, tmp_path)
    pretrain(config, run)
    assert "18 images" in (run.folder / "log.txt").read_text()
    assert next(record["step"] for record in run.metrics() if "knn" in record) == 0
