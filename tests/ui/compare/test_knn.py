"""The Compare tab's k-NN accuracies, their error, and those that a run logged."""

import json
import shutil

import pytest

import dinoviz
from dinoviz.ui.compare import knn
from dinoviz.ui.compare.knn import Score
from training.config.tasks import EvaluateConfig
from training.evaluate import evaluate


@pytest.fixture
def run(tmp_path, tiny_folders):
    """A run with a network, a snapshot and a few records."""
    folder = tmp_path / "mine"
    for where in ("export", "snapshots/step-00000040/export"):
        shutil.copytree(tiny_folders["vit"], folder / where)
    (folder / "checkpoints").mkdir()
    (folder / "config.json").write_text(json.dumps({"kind": "pretrain"}))
    records = [{"step": 20, "knn": 0.2}, {"step": 60, "knn": 0.6}, {"step": 70, "loss": 3.0}, {"step": 80, "knn": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_score_is_that_of_training_evaluate(tiny_folders):
    shares = []
    folder = str(tiny_folders["vit"])
    found = knn.score(dinoviz.load(folder, device="cpu"), lambda done, total, _: shares.append(done / total))
    expected = evaluate(EvaluateConfig(model=folder, linear=False, knn=knn.NEIGHBOURS, device="cpu"))
    assert found.top1 == tuple(expected["knn"][str(k)]["top1"] for k in knn.NEIGHBOURS)
    assert (found.size, found.train, found.test) == (expected["size"], expected["train"], expected["test"])
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_error_is_binomial():
    assert Score("m", 80, 720, 216, 18, (0.5, 0.5)).error(0.25) == pytest.approx((0.25 * 0.75 / 216) ** 0.5)


def test_a_run_has_its_last_accuracy_and_a_snapshot_the_last_until_its_step(run):
    assert knn.run_accuracy(str(run)) == "60.0% at step 60"
    assert knn.run_accuracy(str(run / "snapshots" / "step-00000040")) == "20.0% at step 20"


@pytest.mark.parametrize("name", ["embedded", "no/where", "dinov9"])
def test_a_model_that_is_no_run_has_no_logged_accuracy(name):
    assert knn.run_accuracy(name) == ""


def test_the_table_has_both_models_also_where_one_fails(run):
    found = [Score("mine", 80, 720, 216, 18, (0.5, 0.25)), "There is no <model>."]
    table = knn.table((str(run), "dinov9"), found)
    for figure in ("50.0% ± 3.4%", "60.0% at step 60", "There is no &lt;model&gt;.", "5.6%", "216", "720", "0.07"):
        assert figure in table
