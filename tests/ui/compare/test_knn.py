"""The Compare tab's k-NN: the published evaluation, told with its error, and what a run says of itself."""

import json
import shutil

import pytest

import dinoviz
from dinoviz.ui.compare import knn as compare_knn
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


def test_the_score_is_that_of_the_published_evaluation(tiny_folders):
    told = []
    folder = str(tiny_folders["vit"])
    found = compare_knn.score(dinoviz.load(folder, device="cpu"), lambda done, total, _: told.append(done / total))
    expected = evaluate(EvaluateConfig(model=folder, linear=False, knn=compare_knn.NEIGHBOURS, device="cpu"))
    assert found.top1 == tuple(expected["knn"][str(k)]["top1"] for k in compare_knn.NEIGHBOURS)
    assert (found.size, found.known, found.asked) == (expected["size"], expected["train"], expected["test"])
    assert told == sorted(told)
    assert told[-1] == 1


def test_the_error_is_binomial():
    assert Score("m", 80, 720, 216, 18, (0.5, 0.5)).error(0.25) == pytest.approx((0.25 * 0.75 / 216) ** 0.5)


def test_a_run_tells_its_last_figure_and_a_snapshot_that_of_its_time(run):
    assert compare_knn.told_by_run(str(run)) == "60.0% at step 60"
    assert compare_knn.told_by_run(str(run / "snapshots" / "step-00000040")) == "20.0% at step 20"


@pytest.mark.parametrize("name", ["embedded", "no/where", "dinov9"])
def test_what_is_no_run_tells_nothing(name):
    assert compare_knn.told_by_run(name) == ""


def test_one_that_fails_leaves_the_other_in_the_table(run):
    found = [Score("mine", 80, 720, 216, 18, (0.5, 0.25)), "There is no <model>."]
    table = compare_knn.table((str(run), "dinov9"), found)
    assert "50.0% ± 3.4%" in table
    assert "60.0% at step 60" in table
    assert "There is no &lt;model&gt;." in table
    assert "chance is 5.6%" in table
