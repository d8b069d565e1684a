"""The curves of runs, read while they grow; and the pictures of their snapshots."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz.errors import DinovizError
from dinoviz.ui.train import strip
from dinoviz.ui.train.curves import COLOURS, PANELS, Series, description, figures, key, smoothed, thinned
from dinoviz.ui.train.metrics_log import records
from training.runs.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create("a", "pretrain", {"prototypes": 1024, "clip": 3.0}, root=tmp_path)


def losses(run: Run, values, **more) -> None:
    for i, value in enumerate(values, start=1):
        run.add_metrics({"step": 10 * i, "epoch": i / 2, "loss": value, **more})


def curve(figure: dict, name: str) -> tuple[list, list]:
    """The points (x, y) of the curve of this name."""
    (trace,) = (trace for trace in figure["data"] if trace.get("meta") == name)
    return trace["x"], trace["y"]


def test_records_are_those_of_the_run_and_new_ones_are_added(run):
    assert records(run) == []
    losses(run, [3, 2])
    assert records(run) == run.metrics()
    run.add_metrics({"step": 30, "knn": 0.5})
    assert records(run) == run.metrics()
    assert len(records(run)) == 3


def test_records_are_read_once(run):
    losses(run, [3, 2])
    first = records(run)
    run.add_metrics({"step": 30})
    assert all(mine is known for mine, known in zip(records(run), first, strict=False))


def test_an_incomplete_line_waits_and_a_damaged_one_is_skipped(run):
    losses(run, [3])
    path = run.folder / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 20, "lo')
    assert [record["step"] for record in records(run)] == [10]
    with path.open("a") as file:
        file.write('ss": 2}\n{"step": 30, "lo\n{"step": 40}\n')
    assert [record["step"] for record in records(run)] == [10, 20, 40]


def test_a_run_that_is_resumed_drops_its_last_records(run):
    losses(run, [4, 3, 2, 1])
    assert len(records(run)) == 4
    run.truncate_metrics(20)
    for step in (30, 40, 50, 60):  # longer than it was, before the next reading
        run.add_metrics({"step": step, "epoch": step / 20, "loss": 9.5})
    assert records(run) == run.metrics()
    ((_, figure),) = figures([run])
    assert curve(figure, "a, loss") == ([10, 20, 30, 40, 50, 60], [4, 3, 9.5, 9.5, 9.5, 9.5])


def test_another_run_in_the_same_folder_is_another(run):
    losses(run, [4, 3])
    assert len(records(run)) == 2
    (run.folder / "metrics.jsonl").unlink()
    assert records(run) == []
    losses(run, [2.5, 2.25, 2.125])
    assert records(run) == run.metrics()


def test_threads_read_each_record_once(run):
    losses(run, range(500, 0, -1))
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(len(records(run)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [500] * 8


def test_panels_without_numbers_are_left_out(run):
    assert figures([run]) == []
    losses(run, [2, 1], lr=1e-3, loss_dino=0.5)
    assert [title for title, _ in figures([run])] == ["Loss", "Learning rate"]


@pytest.mark.parametrize(
    ("record", "titles"),
    [
        (
            {"loss": 1.0, "validation_top1": 0.5, "validation_loss": 1.2, "lr": 1e-3, "seconds": 2.0},
            ["Loss", "Accuracy", "Learning rate"],
        ),
        ({"loss": 1.0, "validation_rmse": 0.4}, ["Loss", "Depth error"]),
    ],
)
def test_other_kinds_of_runs_have_panels_too(tmp_path, record, titles):
    run = Run.create("b", "finetune", {}, root=tmp_path)
    run.add_metrics({"step": 5, "epoch": 1, **record})
    assert [title for title, _ in figures([run])] == titles


def test_a_term_that_equals_the_loss_is_not_drawn_again(run):
    for step in (1, 2):
        run.add_metrics({"step": step, "epoch": step, "loss": 6.0 / step, "loss_dino": 6.0 / step})
    ((_, alone),) = figures([run])
    assert [trace.get("meta") for trace in alone["data"]] == ["a, loss"]
    run.add_metrics({"step": 3, "epoch": 3, "loss": 2.5, "loss_dino": 2.0, "loss_koleo": 5.0})
    ((_, several),) = figures([run])
    assert [trace["meta"] for trace in several["data"] if "meta" in trace] == ["a, loss", "a, DINO", "a, KoLeo"]


def test_accuracy_is_in_percent_and_against_the_epoch_if_asked_for(run):
    run.add_metrics({"step": 0, "epoch": 0.0, "knn": 0.25})
    run.add_metrics({"step": 40, "epoch": 2.0, "knn": 0.5})
    ((_, by_step),), ((_, by_epoch),) = figures([run]), figures([run], x="epoch")
    assert curve(by_step, "a, k-NN") == ([0, 40], [25, 50])
    assert curve(by_epoch, "a, k-NN") == ([0, 2], [25, 50])
    assert by_epoch["layout"]["xaxis"]["title"]["text"] == "epoch"


def test_nan_is_a_gap(run):
    losses(run, [3, math.nan, 2])
    ((_, figure),) = figures([run])
    assert curve(figure, "a, loss")[1] == [3, None, 2]


def test_smoothing_is_the_debiased_average_of_tensorboard():
    values = np.array([1.0, 5.0, np.nan, 2.0])
    # By hand: last = 0.5 * last + 0.5 * value, divided by 1 - 0.5^count.
    assert smoothed(values, 0.5) == pytest.approx([1, (0.25 + 2.5) / 0.75, np.nan, (1.375 + 1) / 0.875], nan_ok=True)
    assert smoothed(values, 0) == pytest.approx(values, nan_ok=True)


def test_noisy_panels_are_smoothed_over_the_measured_curve(run):
    losses(run, [4, 2, 3], knn=0.5)
    loss, accuracy = (figure for _, figure in figures([run], smoothing=0.5))
    behind, main = loss["data"]
    assert behind["y"] == [4, 2, 3]
    assert behind["opacity"] < 1
    assert main["y"][0] == 4
    assert main["y"][1] == pytest.approx(2 + 2 / 3, abs=1e-5)
    assert len(accuracy["data"]) == 1


def test_a_long_curve_keeps_its_peaks_its_gaps_and_its_ends():
    values = np.random.default_rng(0).normal(size=100_000)
    values[12_345], values[54_321], values[70_000] = 50, -50, np.nan
    places = thinned(values)
    assert len(places) <= 1500
    assert {0, 12_345, 54_321, 70_000, 99_999} <= set(places)
    assert (np.diff(places) > 0).all()
    assert len(thinned(values[:1500])) == 1500
    assert 0 < len(thinned(np.full(100_000, np.nan))) <= 1500


@pytest.mark.parametrize("n", [1501, 1997, 2994, 100_001])
def test_no_curve_has_more_points_than_allowed(n):
    values = np.sin(np.arange(n) * 1.7)
    assert len(thinned(values)) <= 1500
    assert values[thinned(values)].max() == values.max()


def test_runs_have_a_colour_each_and_terms_a_dash(run, tmp_path):
    other = Run.create("b", "pretrain", {"prototypes": 64}, root=tmp_path)
    for each in (run, other):
        losses(each, [3, 2], loss_dino=1.0, loss_koleo=2.0)
    ((_, figure),) = figures([run, other])
    drawn = {trace["meta"]: trace["line"] for trace in figure["data"] if "meta" in trace}
    assert {drawn[f"a, {name}"]["color"] for name in ("loss", "DINO", "KoLeo")} == {COLOURS[0]}
    assert {drawn[f"b, {name}"]["color"] for name in ("loss", "DINO", "KoLeo")} == {COLOURS[1]}
    assert drawn["a, DINO"]["dash"] == drawn["b, DINO"]["dash"] != drawn["a, loss"]["dash"]
    assert [trace["name"] for trace in figure["data"] if "name" in trace] == ["loss", "DINO", "KoLeo"]
    assert COLOURS[1] in key([run, other])


def test_each_series_of_a_panel_has_its_dash():
    for panel in PANELS:
        if panel.title != "Loss":  # whose validation is never there together with DINO's terms
            assert len({series.dash for series in panel.series}) == len(panel.series)
        assert all(isinstance(series, Series) and series.meaning for series in panel.series)


def test_the_entropy_has_a_reference_line_for_each_number_of_prototypes(run, tmp_path):
    other = Run.create("b", "pretrain", {"prototypes": 64}, root=tmp_path)
    for each in (run, other):
        each.add_metrics({"step": 1, "epoch": 1, "teacher_entropy": 4.0, "teacher_kl": 1.0})
    ((_, figure),) = figures([run, other])
    assert [line["y0"] for line in figure["layout"]["shapes"]] == pytest.approx([math.log(64), math.log(1024)])
    (run.folder / "config.json").write_text("damaged")
    ((_, figure),) = figures([run, other])
    assert len(figure["layout"]["shapes"]) == 1


def test_only_positive_panels_are_logarithmic(run):
    losses(run, [3, 2], embedding_spread=0.5, gradient_norm=1.0)
    kinds = {title: figure["layout"]["yaxis"]["type"] for title, figure in figures([run], log=True)}
    assert kinds == {"Loss": "log", "Spread and prototypes": "linear", "Gradient": "log"}


def test_a_figure_is_described_in_words(run):
    losses(run, [3, 2.5])
    ((title, figure),) = figures([run])
    words = description(title, figure)
    for expected in ("Loss", "step", "a, loss: 3 ", " 2.5 "):
        assert expected in words


@pytest.mark.parametrize(("options", "named"), [({"smoothing": 1}, r"0\.999"), ({"x": "time"}, "time")])
def test_wrong_options_are_refused(run, options, named):
    with pytest.raises(DinovizError, match=named):
        figures([run], **options)


def test_a_name_is_not_html(tmp_path):
    folder = tmp_path / "<b>x"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 2}\n')
    ((_, figure),) = figures([Run(folder)])
    assert "<b>x" not in figure["data"][0]["hovertemplate"] + key([Run(folder)])


@pytest.fixture
def snapshots(run, tmp_path, monkeypatch) -> Path:
    """The folder of two whole snapshots and one that is being written; copies go to a cache of the test's own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    losses(run, [3, 2])  # of steps 10 and 20: 20 steps are an epoch
    run.add_metrics({"step": 40, "epoch": 2.0, "knn": 0.54})
    folder = run.folder / "snapshots"
    for step in (0, 40, 80):
        (folder / f"step-{step:08}").mkdir()
        for i in range(11):
            for name in ("attention", "pca"):
                Image.new("RGB", (16, 16), (step, 20 * i, 0)).save(folder / f"step-{step:08}" / f"{name}-{i}.png")
        if step < 80:
            (folder / f"step-{step:08}" / "arrays.npz").touch()
    return folder


def test_complete_snapshots_become_frames_with_epoch_and_accuracy(run, snapshots, tmp_path):
    found, probes = strip.frames(run)
    assert [(frame["step"], frame["epoch"], frame.get("knn")) for frame in found] == [(0, 0, None), (40, 2.0, 0.54)]
    assert probes == []
    greens = [Image.open(path).getpixel((8, 8))[1] for path in found[1]["pca"]]
    assert greens == pytest.approx([20 * i for i in range(11)], abs=3)  # 10 after 9, not after 1
    for path in found[0]["attention"] + found[1]["pca"]:
        assert Path(path).is_relative_to(tmp_path / "cache")
        assert not Path(path).is_symlink()


def test_a_snapshot_is_copied_once_and_again_if_the_copy_is_gone(run, snapshots):
    first = strip.frames(run)
    copied = strip._copied.cache_info().misses
    assert strip.frames(run) == first
    assert strip._copied.cache_info().misses == copied
    removed = Path(first[0][0]["pca"][3])
    removed.unlink()
    assert strip.frames(run) == first
    assert removed.is_file()


def test_pictures_of_the_probes_come_if_they_are_there(run, snapshots):
    for i in range(2):
        Image.new("RGB", (16, 16)).save(snapshots / f"probe-{i}.png")
    assert len(strip.frames(run)[1]) == 2


def test_a_snapshot_that_cannot_be_read_is_left_out(run, snapshots):
    (snapshots / "step-00000000" / "pca-1.png").write_bytes(b"no picture")
    (snapshots / "step-x").mkdir()
    (snapshots / "step-x" / "arrays.npz").touch()
    assert [frame["step"] for frame in strip.frames(run)[0]] == [40]
