"""Fine-tuning gives classifiers that are what was trained, goes on bit for bit, and says what is wrong."""

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
from training.classifier.methods import Head, Held, Network, logits_of
from training.classifier.model import build, open_classifier
from training.config.tasks import FinetuneConfig
from training.course import Course, FinetuneError
from training.data.demo import demo
from training.data.sources import find
from training.finetune import finetune, predict, resume
from training.runs.run import Run

WAYS = ("linear", "lora", "full")
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


@pytest.mark.parametrize(("family", "way"), [*(("dinov2", way) for way in WAYS), ("dinov2_with_registers", "linear"),
                                             ("vit", "linear"), ("vit", "lora")])  # fmt: skip
def test_the_export_is_what_was_trained_and_opens_everywhere(family, way, config, tiny_folders, folders, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    # A single size that is none of the weights', so that position embeddings are interpolated.
    size, drop_path = (48, 0.0) if family == "vit" else (42, 0.2)
    config = replace(config, way=way, model=str(tiny_folders[family]), size=size, drop_path=drop_path)
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
    if way == "linear" and family != "vit":  # whose position embeddings were brought to the size
        assert backbone.weights_id == dinoviz.load(tiny_folders[family], device="cpu").weights_id
    assert run.status()["state"] == "finished"
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]


def way_of(config: FinetuneConfig, network=None, pictures=None):
    """(the way, its network before, what prepares its pixels, the images that are held)."""
    from training.data.dataset import Decoded

    backbone = dinoviz.load(config.model, device="cpu")
    pictures = pictures or find(config.data)
    network = network or build(backbone, pictures.classes, config.size)
    held = Held(pictures, config.size, 16, 2**30)
    prepare = backbone.normalise
    if config.way == "linear":
        return Head(network, prepare, held, held, config), prepare, held
    return Network(network, prepare, Decoded(pictures, 52), held, config), prepare, held


@pytest.mark.parametrize("way", WAYS)
def test_the_classifier_has_the_logits_of_what_was_trained(way, config):
    config = replace(config, way=way, precision="float32")  # which is what an exported network computes in
    learner, prepare, held = way_of(config)
    Course(replace(config, epochs=1), learner, None, lambda: False, lambda *_: None).go()
    trained = learner.validation()
    assert trained.std() > 0.01
    # The head's standardisation is folded into the weights, LoRA's matrices into those beside them.
    torch.testing.assert_close(logits_of(learner.classifier(), prepare, held), trained, atol=2e-5, rtol=1e-4)


def test_a_head_is_trained_as_scikit_learn_would(config, folders):
    from sklearn.linear_model import LogisticRegression

    learner, _, _ = way_of(config)
    Course(
        replace(config, epochs=100, patience=100, weight_decay=0.0), learner, None, lambda: False, lambda *_: None
    ).go()
    features = learner._train.numpy()
    reference = LogisticRegression(C=1e3, max_iter=1000).fit(features, learner.labels)
    assert (learner.validation().argmax(1).numpy() == reference.predict(features)).mean() == 1


def test_only_lora_and_the_head_are_trained_with_lora(config):
    learner, _, _ = way_of(replace(config, way="lora", lora_on="attention"))
    names = [name for name, p in learner.module.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in names)
    assert sum("lora_A" in name for name in names) == 2 * 3  # queries and values of three blocks
    everywhere, _, _ = way_of(replace(config, way="lora", lora_on="all"))
    names = [name for name, p in everywhere.module.named_parameters() if p.requires_grad]
    assert sum("lora_A" in name for name in names) == 6 * 3


def test_lower_blocks_learn_slower_when_all_weights_are_trained(config):
    learner, _, _ = way_of(replace(config, way="full", layer_decay=0.5))
    assert {group["lr_scale"] for group in learner.groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}
    assert sum(len(group["params"]) for group in learner.groups) == sum(
        p.requires_grad for p in learner.module.parameters()
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(way, config, tmp_path):
    config = replace(config, way=way, mixup=0.2, label_smoothing=0.1)
    whole = begin(config, tmp_path, "whole")
    finetune(config, whole)
    stopped = begin(config, tmp_path, "stopped")

    def stop_in_the_second_epoch(done, of, what):
        if what == "epoch 2" and of == 12 and done == 6:
            stopped.request_stop()

    assert finetune(config, stopped, stop_in_the_second_epoch) is None
    assert stopped.status()["state"] == "stopped"
    assert [record["epoch"] for record in stopped.metrics()] == [1]
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
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_killed_goes_on_bit_for_bit(way, config, tmp_path):
    import subprocess
    import sys

    config = replace(config, way=way)
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


def test_sigterm_ends_a_run_cleanly(config, tmp_path):
    run = begin(config, tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def kill(done, of, what):
        if what == "epoch 2":
            os.kill(os.getpid(), signal.SIGTERM)

    assert finetune(config, run, kill) is None
    assert run.status()["state"] == "stopped"
    assert run.checkpoint().state["epoch"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_does_not_go_on_with_other_images(config, folders, tmp_path):
    run = begin(config, tmp_path)
    finetune(config, run)
    run.set_status("stopped")
    demo("train").open(0).save(folders / "train" / "brick" / "new.png")
    try:
        with pytest.raises(DinovizError, match="images or the model of run a have changed"):
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
    why = f"no better validation accuracy in 2 epochs; best {100 * best['top1']:.1f} % at epoch {best['epoch']}"
    assert why in (run.folder / "log.txt").read_text()
    assert why in run.status()["message"]


def test_who_trains_all_epochs_says_nothing_of_stopping_early(config, tmp_path):
    run = begin(replace(config, patience=1, epochs=1), tmp_path)
    finetune(replace(config, patience=1, epochs=1), run)
    assert "early" not in (run.folder / "log.txt").read_text() + run.status()["message"]


def test_rare_classes_can_weigh_more(config):
    pictures = find(config.data)
    few = pictures.subset([*range(12), *range(12, 15), *range(24, 36)])
    learner, _, _ = way_of(config, pictures=few)
    course = Course(replace(config, class_weights="balanced"), learner, None, lambda: False, lambda *_: None)
    torch.testing.assert_close(course._class_weights, torch.tensor([27 / 36, 27 / 9, 27 / 36]))


def test_predictions_name_the_likeliest_classes(config, folders, tmp_path, chelsea):
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
    config = replace(config, data=(str(tmp_path / "train"),), memory_gb=0.0, way="lora", epochs=1)
    run = begin(config, tmp_path)
    result = finetune(config, run)
    assert result["train"] + result["validation"]["n"] == 36
    assert "broken.png" in (run.folder / "log.txt").read_text()
    for i in range(4):
        (tmp_path / "train" / "brick" / f"broken{i}.png").write_text("no picture")
    with pytest.raises(DinovizError, match=r"of the \d+ \w+ images cannot be read: "):
        finetune(replace(config, max_broken=0.01), begin(config, tmp_path, "b"))


def test_what_cannot_be_is_said_in_a_sentence(config, folders, tiny_folders, tmp_path):
    def refused(match, **settings):
        name = f"run{len(list(tmp_path.iterdir()))}"
        run = begin(replace(config, **settings), tmp_path, name)
        with pytest.raises(DinovizError, match=match):
            finetune(replace(config, **settings), run)
        assert run.status()["state"] == "failed"
        assert run.status()["message"]

    refused("no multiple of the patch size 14; 98 or 112 is", size=100)
    refused("'dinov3_vit' model, of which transformers has no image classifier", model=str(tiny_folders["dinov3_vit"]),
            size=48)  # fmt: skip
    refused("Fine-tuning needs labelled images", data=(str(folders / "train" / "brick"),))
    refused("The loss is no longer a number at step", way="full", lr=1e10, clip=0.0, linear_first=False)
    lonely = tmp_path / "lonely"
    for name, count in (("one", 1), ("two", 2)):
        (lonely / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (40 * i, 9, 9)).save(lonely / name / f"{i}.png")
    refused("at least two images, one of them to check on; only one is there for one", data=(str(lonely),), test="")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    refused("none of them an image|not an image", data=(str(tmp_path / "texts"),))
    refused("that the training images lack: one, two", test=str(lonely))
    with pytest.raises(DinovizError, match="kind 'pretrain'"):
        resume(Run.create("p", "pretrain", {}, root=tmp_path))
    with pytest.raises(DinovizError, match="holds no classifier"):
        predict(tmp_path / "p", [])
    with pytest.raises(DinovizError, match="without a classifier"):
        predict(tiny_folders["dinov2"], [])
    assert issubclass(FinetuneError, DinovizError)


@pytest.mark.parametrize("name", ["export", "result.json"])
def test_a_result_that_cannot_be_written_is_told(name, config, tmp_path):
    run = begin(replace(config, epochs=1), tmp_path)
    part = run.folder / f"{name}.part"
    part.mkdir() if name == "result.json" else part.touch()
    with pytest.raises(DinovizError) as told:
        finetune(replace(config, epochs=1), run)
    why = "Is a directory" if name == "result.json" else "Not a directory"
    assert str(told.value) == run.status()["message"] == f"{run.folder / name} cannot be written: {why}."


def test_a_batch_larger_than_the_data_is_all_of_it(config, tmp_path):
    config = replace(config, batch=1000, epochs=1)
    run = begin(config, tmp_path)
    finetune(config, run)
    assert "The batch is 30, because there are no more images" in (run.folder / "log.txt").read_text()
