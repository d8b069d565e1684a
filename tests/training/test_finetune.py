"""Fine-tuning exports what it trained, resumes bit for bit, and refuses data and settings that cannot be used."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dinoviz
from dinoviz.errors import DinovizError
from tests.conftest import ROOT
from tests.training.tiny_runs import write_classes
from training.classifier.fitting import ClassifierFitting, FinetuneError
from training.classifier.methods import CentreCrops, LinearHead, Network, logits_of
from training.classifier.model import ClassifierError, build, open_classifier
from training.config.tasks import FinetuneConfig
from training.data.demo import demo
from training.data.sources import find
from training.engine.epochs import EpochLoop
from training.finetune import HEAD_FIRST, finetune, predict, resume
from training.runs.run import Run, RunError

METHODS = ("linear", "lora", "full")
CLASSES = ("astronaut", "brick", "camera")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("images"), 12, 4)


@pytest.fixture
def config(folders, tiny_folders) -> FinetuneConfig:
    return FinetuneConfig(
        data=(str(folders / "train"),), test=str(folders / "held-out"), model=str(tiny_folders["dinov2"]),
        device="cpu", size=42, batch=8, epochs=3, lr=1e-3, drop_path=0.2, lora_dropout=0.1,
    )  # fmt: skip


def begin(config: FinetuneConfig, root, name: str = "a") -> Run:
    return Run.create(name, "finetune", config.to_dict(), root=root)


def without_times(run: Run) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.metrics()]


@pytest.mark.parametrize(
    ("family", "method"),
    [*(("dinov2", each) for each in METHODS), ("dinov2_with_registers", "linear"), ("vit", "linear"), ("vit", "lora")],
)
def test_the_export_is_what_was_trained_and_opens_everywhere(family, method, config, tiny_folders, folders, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    # A single size that is none of the weights', so that position embeddings are interpolated.
    size, drop_path = (48, 0.0) if family == "vit" else (42, 0.2)
    config = replace(config, method=method, model=str(tiny_folders[family]), size=size, drop_path=drop_path)
    run = begin(config, tmp_path)
    result = finetune(config, run)
    model, info = AutoModelForImageClassification.from_pretrained(run.export_folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.id2label == dict(enumerate(CLASSES))
    # As transformers itself prepares and classifies the held-out images:
    processor = AutoImageProcessor.from_pretrained(run.export_folder)
    pictures = find(folders / "held-out")
    images = [pictures.open(i) for i in range(len(pictures))]
    with torch.inference_mode():
        logits = model.eval()(**processor(images, return_tensors="pt")).logits
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (pictures.labels, logits.argmax(1).numpy()), 1)
    assert confusion.tolist() == result["test"]["confusion"]
    ours = open_classifier(run.folder, "cpu").probabilities(images)
    np.testing.assert_allclose(ours, logits.softmax(1), atol=1e-5)
    backbone = dinoviz.load(run.folder, device="cpu")
    assert backbone.family == family
    if method == "linear" and family != "vit":  # whose position embeddings were brought to the size
        assert backbone.weights_id == dinoviz.load(tiny_folders[family], device="cpu").weights_id
    assert run.status()["state"] == "finished"
    assert [record["epoch"] for record in run.metrics()] == ([1, 2, 3] if method == "linear" else [0, 1, 2, 3])


def model_of(config: FinetuneConfig, network=None, pictures=None):
    """(the model that is trained, what normalises its pixels, the images)."""
    from training.data.dataset import Decoded

    backbone = dinoviz.load(config.model, device="cpu")
    pictures = pictures or find(config.data)
    network = network or build(backbone, pictures.classes, config.size)
    crops = CentreCrops(pictures, config.size, 16, 2**30)
    prepare = backbone.normalise
    if config.method == "linear":
        return LinearHead(network, prepare, crops, crops, config), prepare, crops
    return Network(network, prepare, Decoded(pictures, 52), crops, config), prepare, crops


def fit(config: FinetuneConfig, model) -> None:
    EpochLoop(ClassifierFitting(config, model), None, lambda: False, lambda *_: None).fit()


@pytest.mark.parametrize("method", METHODS)
def test_the_classifier_has_the_logits_of_what_was_trained(method, config):
    config = replace(config, method=method, precision="float32")  # which is what an exported network computes in
    model, prepare, crops = model_of(config)
    fit(replace(config, epochs=1), model)
    trained = model.validation_logits()
    assert trained.std() > 0.01
    # The head's standardisation is folded into the weights, LoRA's matrices into those beside them.
    torch.testing.assert_close(logits_of(model.classifier(), prepare, crops), trained, atol=2e-5, rtol=1e-4)


def test_the_linear_head_agrees_with_scikit_learn(config, folders):
    from sklearn.linear_model import LogisticRegression

    model, _, _ = model_of(config)
    fit(replace(config, epochs=100, patience=100, weight_decay=0.0), model)
    features = model.features.numpy()
    reference = LogisticRegression(C=1e3, max_iter=1000).fit(features, model.labels)
    assert (model.validation_logits().argmax(1).numpy() == reference.predict(features)).mean() == 1


def test_only_lora_and_the_head_are_trained_with_lora(config):
    model, _, _ = model_of(replace(config, method="lora", lora_on="attention"))
    names = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in names)
    assert sum("lora_A" in name for name in names) == 2 * 3  # queries and values of three blocks
    everywhere, _, _ = model_of(replace(config, method="lora", lora_on="all"))
    names = [name for name, p in everywhere.module.named_parameters() if p.requires_grad]
    assert sum("lora_A" in name for name in names) == 6 * 3


def test_lower_blocks_learn_slower_when_all_weights_are_trained(config):
    model, _, _ = model_of(replace(config, method="full", layer_decay=0.5))
    assert {group["lr_scale"] for group in model.groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}
    assert sum(len(group["params"]) for group in model.groups) == sum(
        p.requires_grad for p in model.module.parameters()
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_bit_for_bit(method, config, tmp_path):
    config = replace(config, method=method, mixup=0.2, label_smoothing=0.1)
    whole = begin(config, tmp_path, "whole")
    finetune(config, whole)
    stopped = begin(config, tmp_path, "stopped")

    def stop_in_the_second_epoch(done, of, what):
        if what == "epoch 2" and of == 12 and done == 6:
            stopped.request_stop()

    assert finetune(config, stopped, stop_in_the_second_epoch) is None
    assert stopped.status()["state"] == "stopped"
    assert [record["epoch"] for record in stopped.metrics()][-1] == 1
    stopped.add_metrics({"step": 8, "epoch": 2, "loss": 0.0})  # as if killed before the checkpoint was written
    assert resume(stopped) is not None
    assert without_times(stopped) == without_times(whole)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (stopped.export_folder / name).read_bytes() == (whole.export_folder / name).read_bytes()


KILLED = """
import os, signal, sys
import torch
from training.finetune import finetune
from training.runs import Run
from training.config.tasks import FinetuneConfig
torch.set_num_threads(int(sys.argv[2]))
run = Run(sys.argv[1])
finetune(FinetuneConfig.from_dict(run.config), run,
         lambda done, of, what: os.kill(os.getpid(), signal.SIGKILL) if (of, done) == (12, 7) else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_bit_for_bit(method, config, tmp_path):
    import subprocess
    import sys

    config = replace(config, method=method)
    whole, killed = begin(config, tmp_path, "whole"), begin(config, tmp_path, "killed")
    finetune(config, whole)
    # As many threads as here, because sums are split among them.
    ended = subprocess.run([sys.executable, "-c", KILLED, str(killed.folder), str(torch.get_num_threads())], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    assert killed.status()["state"] == "died"
    assert resume(killed) is not None
    assert without_times(killed) == without_times(whole)
    weights = "model.safetensors"
    assert (killed.export_folder / weights).read_bytes() == (whole.export_folder / weights).read_bytes()


def test_sigterm_stops_a_run_cleanly(config, tmp_path):
    run = begin(config, tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def kill(done, of, what):
        if what == "epoch 2":
            os.kill(os.getpid(), signal.SIGTERM)

    assert finetune(config, run, kill) is None
    assert run.status()["state"] == "stopped"
    assert run.checkpoint().state["epoch"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_does_not_resume_with_other_images(config, folders, tmp_path):
    run = begin(config, tmp_path)
    finetune(config, run)
    run.set_status("stopped")
    demo("train").open(0).save(folders / "train" / "brick" / "new.png")
    try:
        with pytest.raises(DinovizError, match="run a "):
            resume(run)
    finally:
        (folders / "train" / "brick" / "new.png").unlink()
    assert run.status()["state"] == "failed"


def test_it_stops_early_and_keeps_the_best(config, tmp_path):
    config = replace(config, lr=1e-30, epochs=50, patience=2)
    run = begin(config, tmp_path)
    result = finetune(config, run)
    assert result["best"]["epoch"] in (1, 2, 3)  # rounding alone may seem better
    assert result["epochs"] == result["best"]["epoch"] + 2
    best = result["best"]
    for text in ((run.folder / "log.txt").read_text(), run.status()["message"]):
        assert f"2 epochs; best {100 * best['top1']:.1f} % at epoch {best['epoch']}" in text


def test_a_run_of_all_epochs_does_not_report_early_stopping(config, tmp_path):
    run = begin(replace(config, patience=1, epochs=1), tmp_path)
    finetune(replace(config, patience=1, epochs=1), run)
    assert "early" not in (run.folder / "log.txt").read_text() + run.status()["message"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_linear_head_is_a_candidate_and_is_logged(method, config, tmp_path):
    """With a learning rate that destroys the features, the head that training started from is exported."""
    head = replace(config, batch=32, lr=0.0, **HEAD_FIRST)
    expected = finetune(head, begin(head, tmp_path, "head"))
    config = replace(config, method=method, lr=0.3, epochs=2)
    run = begin(config, tmp_path)
    result = finetune(config, run)
    first, *others = run.metrics()
    assert (first["epoch"], first["step"]) == (0, 0)
    assert all(first["validation_top1"] >= each["validation_top1"] for each in others)
    assert all(first["validation_loss"] < each["validation_loss"] for each in others)
    assert result["best"] == {"epoch": 0, "top1": first["validation_top1"], "loss": first["validation_loss"]}
    assert result["test"]["confusion"] == expected["test"]["confusion"]


def test_without_a_linear_head_first_there_is_no_epoch_0(config, tmp_path):
    config = replace(config, method="full", linear_first=False, epochs=1)
    run = begin(config, tmp_path)
    assert finetune(config, run)["best"]["epoch"] == 1
    assert [record["epoch"] for record in run.metrics()] == [1]


def test_balanced_class_weights(config):
    pictures = find(config.data)
    few = pictures.subset([*range(12), *range(12, 15), *range(24, 36)])
    model, _, _ = model_of(config, pictures=few)
    fitting = ClassifierFitting(replace(config, class_weights="balanced"), model)
    torch.testing.assert_close(fitting.class_weights, torch.tensor([27 / 36, 27 / 9, 27 / 36]))


def test_predictions_are_the_most_probable_classes(config, folders, tmp_path, chelsea):
    run = begin(config, tmp_path)
    finetune(config, run)
    image = next((folders / "train" / "brick").iterdir())
    found = predict(run.folder, [image, np.asarray(chelsea)], top=2, device="cpu")
    assert len(found) == 2
    assert found[0][0][0] == "brick"
    assert all(len(row) == 2 and row[0][1] >= row[1][1] for row in found)
    assert predict(open_classifier(run.export_folder, "cpu"), [image], top=2) == found[:1]


def test_broken_images_are_left_out_and_named(config, folders, tmp_path):
    import shutil

    shutil.copytree(folders / "train", tmp_path / "train")
    (tmp_path / "train" / "brick" / "broken.png").write_text("no picture")
    config = replace(config, data=(str(tmp_path / "train"),), memory_gb=0.0, method="lora", epochs=1)
    run = begin(config, tmp_path)
    result = finetune(config, run)
    assert result["train"] + result["validation"]["n"] == 36
    assert "broken.png" in (run.folder / "log.txt").read_text()
    for i in range(4):
        (tmp_path / "train" / "brick" / f"broken{i}.png").write_text("no picture")
    with pytest.raises(FinetuneError, match=r"[45] of the \d+ "):
        finetune(replace(config, max_broken=0.01), begin(config, tmp_path, "b"))


def test_refuses_images_models_and_settings_that_cannot_be_used(config, folders, tiny_folders, tmp_path):
    lonely = tmp_path / "lonely"
    for name, count in (("one", 1), ("two", 2)):
        (lonely / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (40 * i, 9, 9)).save(lonely / name / f"{i}.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for words, settings in (
        ("98 or 112", {"size": 100}),
        ("'dinov3_vit'", {"model": str(tiny_folders["dinov3_vit"]), "size": 48}),
        ("no labels", {"data": (str(folders / "train" / "brick"),)}),
        ("below 1e\\+10", {"method": "full", "lr": 1e10, "clip": 0.0, "linear_first": False}),
        ("for one", {"data": (str(lonely),), "test": ""}),
        ("not an image", {"data": (str(tmp_path / "texts"),)}),
        ("one, two", {"test": str(lonely)}),
    ):
        changed = replace(config, **settings)
        run = begin(changed, tmp_path, f"run{len(list(tmp_path.iterdir()))}")
        with pytest.raises(DinovizError, match=words):
            finetune(changed, run)
        assert run.status()["state"] == "failed"
        assert run.status()["message"]
    with pytest.raises(RunError, match="'pretrain'"):
        resume(Run.create("p", "pretrain", {}, root=tmp_path))
    for folder in (tmp_path / "p", tiny_folders["dinov2"]):
        with pytest.raises(ClassifierError, match=folder.name):
            predict(folder, [])


@pytest.mark.parametrize("name", ["export", "result.json"])
def test_a_result_that_cannot_be_written_is_an_error(name, config, tmp_path):
    run = begin(replace(config, epochs=1), tmp_path)
    part = run.folder / f"{name}.part"
    part.mkdir() if name == "result.json" else part.touch()
    with pytest.raises(RunError) as raised:
        finetune(replace(config, epochs=1), run)
    assert str(run.folder / name) in str(raised.value)
    assert str(raised.value) == run.status()["message"]


def test_a_batch_larger_than_the_data_is_reduced(config, tmp_path):
    config = replace(config, batch=1000, epochs=1)
    run = begin(config, tmp_path)
    finetune(config, run)
    assert "The batch is 30" in (run.folder / "log.txt").read_text()
