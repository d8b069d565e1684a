"""Pretraining fits its data, starts from any model, and exports a network that dinoviz opens."""

import shutil

import numpy as np
import pytest
import torch

import dinoviz
from tests.conftest import FAMILIES
from tests.training.tiny_runs import PLAIN, assert_same, begin, losses, settings, tensors, without_machine, write_images
from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.data.dataset import DataError
from training.dino import snapshots
from training.engine.vit import blocks
from training.export import export_checkpoint
from training.pretrain import Pretraining, pretrain
from training.runs.run import Run, RunError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 64)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("eight"), 8)


def trained(config: PretrainConfig, root, name: str = "a") -> Run:
    run = begin(config, root, name)
    pretrain(config, run)
    return run


def test_it_overfits_eight_images(eight, tmp_path):
    """The student matches the teacher: the cross-entropy falls to the teacher's own entropy."""
    config = settings(
        eight, **PLAIN, epochs=150.0, warmup_epochs=10.0, batch=8, lr=0.03, lr_end=1e-4, teacher_momentum=0.8,
        teacher_temperature_epochs=0.0, weight_decay=0.0, weight_decay_end=0.0, log_every=10, checkpoint_minutes=60.0,
    )  # fmt: skip
    records = losses(trained(config, tmp_path))
    gaps = [record["loss"] - record["teacher_entropy"] for record in records]
    assert max(gaps) > 0.1
    assert -0.005 < gaps[-1] < 0.02
    assert records[-1]["teacher_information"] > 1  # of log 8 = 2.1 nats: the output has not collapsed
    assert records[-1]["loss"] < 0.6  # of log 64 = 4.2
    assert {record["alarm"] for record in records} == {None}


def test_the_run_folder_opens_with_its_teacher(images, tmp_path, astronaut):
    config = settings(images, lr=0.02)
    run = trained(config, tmp_path)
    backbone = dinoviz.load(run.folder, device="cpu", dtype=torch.float32)
    assert (backbone.patch_size, backbone.dim, backbone.layers, backbone.heads) == (8, 32, 2, 2)
    weights = run.checkpoint().tensors("teacher")
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, weights[f"backbone.{name}"]), name
    untrained = Pretraining(config, begin(config, tmp_path, "b"))
    folder = tmp_path / "student"
    export_checkpoint(run, folder, "student")
    student = dinoviz.load(folder, device="cpu", dtype=torch.float32)
    patches = [b.encode(astronaut, 64).patches for b in (backbone, student)]
    first = (
        snapshots.view(untrained.dino.teacher.backbone, "", backbone.mean, backbone.std).encode(astronaut, 64).patches
    )
    assert patches[0].shape == (8, 8, 32)
    for one, other in ((patches[0], first), (patches[1], first), (patches[0], patches[1])):
        assert np.abs(one - other).max() > 1e-3


def test_an_export_needs_a_checkpoint(images, tmp_path):
    run = begin(settings(images), tmp_path)
    with pytest.raises(RunError, match="teacher"):
        export_checkpoint(run, tmp_path / "export")


def test_microbatches_add_up_to_the_batch(images, tmp_path):
    """Up to rounding; not with sinkhorn or KoLeo, which are computed over a microbatch."""
    whole, parts = (losses(trained(settings(images, accumulate=n, epochs=1.0), tmp_path, f"a{n}")) for n in (1, 2))
    for one, other in zip(whole, parts, strict=True):
        # 1e-6 of the largest score, 1 / student_temperature; Adam amplifies it where gradients are tiny.
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5 if one["step"] == 1 else 1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_streamed_and_cached_images_give_the_same_run(images, tmp_path):
    cached = trained(settings(images), tmp_path, "cached")
    streamed = trained(settings(images, memory_gb=0.0, workers=0), tmp_path, "streamed")
    assert_same(streamed, cached)
    assert "on the disk" in (streamed.folder / "log.txt").read_text()


@pytest.mark.slow
def test_streaming_by_worker_processes_gives_the_same_run(images, tmp_path):
    cached = trained(settings(images), tmp_path, "cached")
    assert_same(trained(settings(images, memory_gb=0.0, workers=2), tmp_path, "streamed"), cached)


def test_the_seed_determines_the_run(images, tmp_path):
    a, b, c = (trained(settings(images, seed=s, epochs=0.5), tmp_path, n) for s, n in ((1, "a"), (1, "b"), (2, "c")))
    assert_same(a, b)
    assert without_machine(a) != without_machine(c)


def test_bfloat16_runs_near_float32(images, tmp_path):
    full, half = (
        losses(trained(settings(images, precision=p, epochs=1.0), tmp_path, p)) for p in ("float32", "bfloat16")
    )
    assert full[0]["loss"] != half[0]["loss"]
    assert full[0]["loss"] == pytest.approx(half[0]["loss"], rel=0.02)  # bfloat16 keeps 8 bits: 0.4 % a number
    assert all(np.isfinite(record["loss"]) for record in half)


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(images, tmp_path):
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a compiler on a CPU")
    plain, compiled = (
        losses(trained(settings(images, compile=c, epochs=0.5), tmp_path, str(c))) for c in (False, True)
    )
    # Fused operations round differently, and a teacher temperature of 0.04 amplifies that 25 times.
    assert [r["loss"] for r in compiled] == pytest.approx([r["loss"] for r in plain], rel=5e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_from_a_model_of_any_family(family, images, tiny_folders, tmp_path):
    patch = 14 if "dinov2" in family else 16
    config = settings(
        images, start=str(tiny_folders[family]), global_size=2 * patch, local_size=patch, epochs=0.5, freeze_layers=1,
        layer_decay=0.5,
    )  # fmt: skip
    run = begin(config, tmp_path)
    training = Pretraining(config, run)
    before = {name: value.clone() for name, value in training.dino.student.state_dict().items()}
    training.train()
    backbone, after = training.dino.student.backbone, training.dino.student.state_dict()
    frozen = {f"backbone.{name}" for name, p in backbone.named_parameters() if not p.requires_grad}
    lowest = {id(p) for p in (*backbone.embeddings.parameters(), *blocks(backbone)[0].parameters())}
    assert frozen >= {f"backbone.{name}" for name, p in backbone.named_parameters() if id(p) in lowest}
    for name in frozen:
        assert torch.equal(after[name], before[name]), name
    learning = {name for name in before if "backbone." in name} - frozen
    # ViT's pooler and the like get no gradient: most of the rest must move, not all.
    assert sum(not torch.equal(after[name], before[name]) for name in learning) > 0.6 * len(learning)
    scales = {group["lr_scale"] for group in training.dino.optimizer.param_groups}
    assert max(scales) == 1
    assert min(scales) < 1
    loaded = dinoviz.load(run.folder, device="cpu", dtype=torch.float32)
    start = dinoviz.load(tiny_folders[family], device="cpu", dtype=torch.float32)
    assert (loaded.patch_size, loaded.registers, loaded.mean) == (start.patch_size, start.registers, start.mean)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": 65}, "64 .*65"),
        ({"freeze_layers": 1}, r"freeze_layers \(1\)"),
        ({"start": "dinov2"}, "16 px.*14 px"),
    ],
)
def test_refuses_settings_that_do_not_fit_the_data_or_the_model(values, words, images, tiny_folders, tmp_path):
    if "start" in values:
        values = {"start": str(tiny_folders[values["start"]])}
    config = settings(images, **values)
    run = begin(config, tmp_path)
    with pytest.raises((ConfigError, DataError), match=words) as raised:
        pretrain(config, run)
    assert run.status()["state"] == "failed"
    assert run.status()["message"] == str(raised.value)


def test_the_log_warns_of_small_images_and_too_many_prototypes(tmp_path, images):
    config = settings(images, prototypes=256, global_size=112, local_size=32, epochs=0.25)
    log = (trained(config, tmp_path).folder / "log.txt").read_text()
    for figures in (("96 px", "112 px"), ("(256)", "(128)")):
        assert sum(all(each in line for each in figures) for line in log.splitlines()) == 1
    assert "prototypes (" not in (trained(settings(images, epochs=0.25), tmp_path, "b").folder / "log.txt").read_text()


@pytest.mark.parametrize(("batch", "log_every"), [(16, 1), (16, 3), (16, 10), (64, 2)])
def test_prototypes_are_counted_over_an_epoch_or_since_the_last_record(batch, log_every, images, tmp_path):
    config = settings(images, batch=batch, log_every=log_every, epochs=3.0, checkpoint_minutes=60.0)
    training = Pretraining(config, begin(config, tmp_path))
    strongest, step = [], training.dino.step

    def spy(*args):
        result = step(*args)
        strongest.append(set(result.targets.flatten(0, 1).argmax(-1).tolist()))
        return result

    training.dino.step = spy
    training.train()
    for record in losses(training.run):
        recent = strongest[max(0, record["step"] - max(64 // batch, log_every)) : record["step"]]
        assert record["prototypes_used"] == pytest.approx(len(set.union(*recent)) / config.prototypes)


def test_unused_mask_token_and_frozen_prototypes_do_not_change(images, tmp_path):
    config = settings(images, freeze_last_layer=1.0, epochs=2.0)
    kept = {}

    def progress(record):
        if "loss" in record:
            kept[record["step"]] = training.dino.student.head.prototypes.detach().clone()

    training = Pretraining(config, begin(config, tmp_path), progress)
    first = training.dino.student.head.prototypes.detach().clone()
    training.train()
    assert all(torch.equal(kept[step], first) for step in range(1, 5))
    assert not torch.equal(kept[5], first)
    after = tensors(training.run)
    token = "backbone.embeddings.mask_token"
    assert torch.equal(after[f"student {token}"], after[f"teacher {token}"])
