"""The Train tab, from the first run to a classifier's prediction, in a real browser with real processes."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import started_app, watched_page
from tests.browser.pictures import choose, is_blank, pixels, source, wait_for_change, wait_for_status
from tests.browser.train import ALONE, half, open_train, says, train
from training.data.demo import demo

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def served(folder):
    """An app with runs of its own."""
    with started_app(folder / "app.log", **ALONE) as (url, process):
        yield url, process


@pytest.fixture(scope="module")
def page(browser, served, folder):
    """One page for all tests of this file, which build on one another."""
    with watched_page(browser, served[0], folder / "app.log", reloads=True) as page:
        open_train(page, served[0])
        yield page


def film(page) -> int:
    """How many snapshots the strip has."""
    return page.locator("#train-strip .dv-film button").count()


def points(page) -> int:
    """How many points the loss has."""
    return page.evaluate("document.querySelector('#train-panel-0 .js-plotly-plot')?.data?.at(-1)?.x?.length ?? 0")


def test_the_form_shows_its_command_and_the_demo(page):
    says(page, "720 crops of 18 pictures", selector="#train-found")
    page.wait_for_selector("#train-pictures img")
    says(page, r"python -m training pretrain --demo --preset micro", selector="#train-command")
    choose(page, "#train-preset", "tiny")
    says(page, "--preset tiny", selector="#train-command")
    expect(page.locator("#train-pretrain-global-size input")).to_have_value("96")
    choose(page, "#train-preset", "micro")
    expect(page.locator("#train-pretrain-global-size input")).to_have_value("48")
    page.fill("#train-pretrain-batch input", "16")
    page.keyboard.press("Tab")
    says(page, "--preset micro .*--batch 16", selector="#train-command")
    page.fill("#train-pretrain-batch input", "32")
    page.keyboard.press("Tab")
    for task, command in (("Fine-tune a classifier", "finetune"), ("Continue from the model above", "--preset adapt")):
        page.get_by_label(task, exact=True).check()
        says(page, command, selector="#train-command")
    page.get_by_label("Pretrain from scratch", exact=True).check()
    says(page, "--preset micro", selector="#train-command")


def test_crops_are_drawn_and_drawn_again(page):
    page.get_by_text("Crops for student and teacher").click()
    says(page, "2 global crops", selector="#train-crops-words")
    page.wait_for_function("document.querySelectorAll('#train-crops img').length === 7")  # boxes, 2 global, 4 local
    before = page.locator("#train-crops img").nth(1).get_attribute("src")
    page.click("#train-crops-again")
    page.wait_for_function(
        "old => document.querySelectorAll('#train-crops img')[1].getAttribute('src') !== old", arg=before
    )
    page.get_by_text("Crops for student and teacher").click()


def test_an_estimate(page):
    page.click("#train-estimate")
    assert re.search(r"About \d+ (s|min)", says(page, "About", selector="#train-estimated"))


def test_wrong_values_are_refused_in_one_sentence(page):
    train(page, "a/b")
    toast = page.locator(".toast-body")
    toast.get_by_text("a/b").wait_for()
    toast.get_by_role("button").first.click()
    train(page, "fine", lr=-1)
    toast.get_by_text("lr").wait_for()
    page.fill("#train-pretrain-lr input", "0.008")


def test_a_run_is_watched_found_again_stopped_and_resumed(page, served):
    train(page, "first", epochs=6)
    says(page, "first is training: step", timeout=90)
    page.wait_for_selector("#train-panel-0 .js-plotly-plot")
    page.wait_for_function("document.querySelectorAll('#train-strip .dv-film button').length >= 1")
    seen, frames = points(page), film(page)
    page.wait_for_function(
        "n => document.querySelector('#train-panel-0 .js-plotly-plot').data.at(-1).x.length > n", arg=seen
    )
    page.reload()
    page.wait_for_selector("#attention-map img")
    says(page, "first is training: open Train", selector="#going-on")
    page.get_by_role("tab", name="Train", exact=True).click()
    says(page, "first is training: step")  # the Watch half is open
    page.wait_for_function("n => document.querySelectorAll('#train-strip .dv-film button').length > n", arg=frames)
    assert "epoch 0.0," not in page.inner_text("#train-strip .dv-when")  # the newest snapshot is shown
    page.click("#train-stop")
    stopped = says(page, r"first was stopped: step (\d+)")
    step = int(re.search(r"step (\d+)", stopped)[1])
    assert 0 < step < 132
    page.click("#train-resume")
    resumed = says(page, r"first is training: step (\d+)")
    assert int(re.search(r"step (\d+)", resumed)[1]) >= step
    says(page, "first is finished: step 132 of 132", timeout=120)
    assert film(page) >= 4


def test_the_strip_scrubs_and_the_curves_follow_their_controls(page):
    last = source(page, "#train-strip .dv-probes")
    page.evaluate("""() => {
        const slider = document.querySelector('#train-strip input[type=range]')
        slider.value = 0
        slider.dispatchEvent(new Event('input'))
    }""")
    says(page, "step 0, epoch 0.0", selector="#train-strip .dv-when")
    assert last
    before = points(page)
    page.locator("#train-log input").check()
    page.wait_for_function("document.querySelector('#train-panel-0 .js-plotly-plot').layout.yaxis.type === 'log'")
    page.locator("#train-log input").uncheck()
    page.locator("#train-x").get_by_label("epoch").check()
    page.wait_for_function(
        "document.querySelector('#train-panel-0 .js-plotly-plot').layout.xaxis.title.text.includes('epoch')"
    )
    assert points(page) == before


def test_the_card_and_the_download(page):
    page.get_by_text("Card of the run").click()
    assert "k-NN accuracy" in says(page, "python -m training", selector="#train-card")
    with page.expect_download() as download:
        page.click("#train-file-button")
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "about.json"} <= set(names)


def test_the_run_is_inspected_in_the_other_tabs(page, folder):
    page.click("#train-look")
    wait_for_status(page, "first:")
    assert "224 px" in page.locator("#resolution input").input_value()
    says(page, "first .* layer 4 of 4", selector="#attention-caption")
    trained = pixels(page, "#attention-map")
    assert not is_blank(trained)
    before = source(page, "#attention-map")
    untrained = folder / "runs" / "first" / "snapshots" / "step-00000000"
    give_model(page, str(untrained))
    wait_for_status(page, "first at step 0")
    wait_for_change(page, "#attention-map", before)
    assert np.abs(pixels(page, "#attention-map").astype(int) - trained).mean() > 2
    page.get_by_role("tab", name="Patch PCA", exact=True).click()
    says(page, "first at step 0", selector="#pca-caption")
    untrained_pca, before = pixels(page, "#pca-map"), source(page, "#pca-map")
    give_model(page, str(folder / "runs" / "first"))
    wait_for_change(page, "#pca-map", before)
    trained_pca = pixels(page, "#pca-map")
    assert not is_blank(trained_pca)
    assert np.abs(trained_pca.astype(int) - untrained_pca).mean() > 2


def give_model(page, value: str) -> None:
    page.locator("#model input").fill(value)
    page.keyboard.press("Enter")


def zip_of_two_classes(path) -> None:
    pictures = demo("train")
    with zipfile.ZipFile(path, "w") as archive:
        for i in [*range(12), *range(40 * 5, 40 * 5 + 12)]:
            buffer = io.BytesIO()
            Image.fromarray(pictures.where[i]).save(buffer, "PNG")
            archive.writestr(f"photos/{pictures.classes[pictures.labels[i]]}/{i}.png", buffer.getvalue())


@pytest.mark.slow
def test_a_classifier_is_trained_on_an_upload_and_predicts(page, tmp_path):
    """On the run before, whose small network is fine-tuned quickly."""
    zip_of_two_classes(tmp_path / "two.zip")
    page.get_by_role("tab", name="Train", exact=True).click()
    half(page, "Set up a run")
    page.get_by_label("Fine-tune a classifier", exact=True).check()
    page.locator("#train-where").get_by_label("Upload").check()
    page.set_input_files("#train-files input[type=file]", str(tmp_path / "two.zip"))
    says(page, r"24 pictures[\s\S]*2 classes: astronaut 12, coffee 12", selector="#train-found")
    says(page, "finetune two.zip", selector="#train-command")
    page.fill("#train-name input", "mine")
    page.fill("#train-finetune-epochs input", "30")
    page.keyboard.press("Tab")
    page.click("#train-start")
    says(page, "mine is finished", timeout=120)
    says(page, "astronaut|coffee", selector="#train-answer")
    page.locator("#examples .gallery-item").nth(1).click()  # the astronaut
    says(page, r"above\s+astronaut", selector="#train-answer")
