"""The model card of a run: its content, its commands and code, its metadata, and no paths of the machine."""

import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dinoviz
from tests.training.config.test_cli import parsed
from tests.training.tiny_runs import settings, write_images
from training.config.base import Config
from training.config.tasks import FinetuneConfig, ProbeConfig
from training.finetune import finetune
from training.pretrain import pretrain
from training.probe import probe
from training.publish.model_card import card, hub_card, result
from training.runs.run import Run

KINDS = ("pretrain", "finetune", "probe")
ODD = ("![x](\\\\evil.example\\x.png)", "<img src=x onerror=alert(1)>", "a|b `c` *d* [e](f) $$x$$ ~g~ &lt;")


def rooms(folder: Path) -> Path:
    for part in ("rgb", "depth"):
        (folder / part).mkdir(parents=True)
    for i in range(3):
        shade = np.random.default_rng(i).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(np.stack([shade] * 3, 2)).save(folder / "rgb" / f"{i}.png")
        Image.fromarray(1000 + 10 * shade.astype(np.uint16)).save(folder / "depth" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folders) -> SimpleNamespace:
    """A finished run of each kind, in a folder `runs`, with classes of hostile names."""
    home = tmp_path_factory.mktemp("home")
    for name in ODD:
        write_images(home / "odd classes" / name, 7)
    photos, model = str(home / "odd classes"), str(tiny_folders["dinov2"])
    configs = {
        "pretrain": settings(Path(photos), epochs=2.0, batch=4, validation=photos, probe_images=(
            str(home / "odd classes" / ODD[0] / "000.png"),)),
        "finetune": FinetuneConfig(data=(photos,), test=photos, model=model, device="cpu", size=42, epochs=1, batch=8),
        "probe": ProbeConfig(
            data=str(rooms(home / "rooms")), test=str(home / "rooms"), model=model, device="cpu", resolution=224,
            epochs=1, batch=2, bins=8, upsample=1, crop="none",
        ),
    }  # fmt: skip
    runs = {kind: Run.create(f"my-{kind}_1", kind, configs[kind].to_dict(), root=home / "runs") for kind in KINDS}
    for kind, work in zip(KINDS, (pretrain, finetune, probe), strict=True):
        work(configs[kind], runs[kind])
    return SimpleNamespace(home=home, runs=runs, configs=configs)


def block(text: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_has_no_path_of_the_machine(kind, finished, tiny_folders):
    for text in (card(finished.runs[kind]), hub_card(finished.runs[kind], "someone/something")):
        for path in (finished.home, finished.home.parent, tiny_folders["dinov2"].parent, Path.home()):
            assert f"{path}/" not in text
        assert not re.search(r"(^|[\s'\"])/\w", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pretrain", ["finished at step 10 of 10", "**Data** odd classes", "**From** random weights", "k-NN accuracy"]),
        ("finetune", ["image classification", "**From** dinov2", "validation accuracy", "## Test: top-1", "21 images"]),
        (
            "probe",
            [
                "depth probe",
                "**Data** rooms",
                "**From** dinov2",
                "validation RMSE",
                "## Test: ",
                "| median scaled |",
                "sorted by name",
            ],
        ),
    ],
)
def test_the_card_describes_the_run(kind, words, finished):
    text = card(finished.runs[kind])
    assert text.startswith(f"# my-{kind}\\_1\n")
    for each in words:
        assert each in text, text
    assert re.search(r"\*\*Time\*\* about \d", text) or kind == "probe"


def test_figures_are_those_of_the_last_record(finished):
    last = {k: v for record in finished.runs["pretrain"].metrics() for k, v in record.items() if v is not None}
    text = card(finished.runs["pretrain"])
    assert f"| loss | {last['loss']:.3g} |" in text
    assert f"| k-NN accuracy | {100 * last['knn']:.3g} % |" in text


def test_the_table_counts_each_class(finished):
    run = finished.runs["finetune"]
    rows = re.findall(r"^\| .* \| (\d+)% \| (\d+) \| .* \|$", card(run).split("## Test")[1], re.MULTILINE)
    scores = result(run)["test"]
    assert [(int(share), int(total)) for share, total in rows] == [
        (round(100 * share), 7) for share in scores["per_class"].values()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_reproduces_the_configuration(kind, finished):
    command = block(card(finished.runs[kind]), "sh")
    _, back = parsed(kind, command)
    config = finished.configs[kind]
    paths = ("data", "validation", "test", "model", "start", "probe_images")
    same = {name: getattr(config, name) for name in paths if hasattr(config, name)}
    assert replace(back, **same) == config
    assert back.data in ("rooms", ("odd classes",))  # relative to the working folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_opens_the_network(kind, finished, monkeypatch):
    monkeypatch.chdir(finished.home)
    run = finished.runs[kind]
    names: dict = {}
    exec(block(card(run), "python"), names)
    if kind == "pretrain":
        assert names["backbone"].weights_id == dinoviz.load(run.folder).weights_id
    elif kind == "finetune":
        assert set(names["model"].config.id2label.values()) == set(ODD)
        picture = Image.new("RGB", (60, 50))
        with torch.inference_mode():
            logits = names["model"](**names["processor"](picture, return_tensors="pt")).logits
        assert logits.shape == (1, 3)
    else:
        assert names["probe"].about["backbone"] == "dinov2"


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_for_the_hub_names_the_repository(kind, finished):
    code = block(hub_card(finished.runs[kind], "someone/some.thing"), "python")
    compile(code, "card", "exec")
    assert '"someone/some.thing"' in code
    assert "runs/" not in code


@pytest.mark.parametrize(
    ("kind", "task", "library"),
    [
        ("pretrain", "image-feature-extraction", "transformers"),
        ("finetune", "image-classification", "transformers"),
        ("probe", "depth-estimation", "dinoviz"),
    ],
)
def test_the_metadata_has_task_library_and_results(kind, task, library, finished):
    from huggingface_hub import ModelCard

    text = hub_card(finished.runs[kind])
    empty, header, body = text.split("---\n", 2)
    assert (empty, body) == ("", "\n" + card(finished.runs[kind]))
    found = yaml.safe_load(header)
    index = found.pop("model-index", [])
    assert found == {"library_name": library, "pipeline_tag": task, "tags": ["dino", "dinoviz"]}
    assert [each["name"] for each in index] == ([] if kind == "pretrain" else [f"my-{kind}_1"])
    results = {each.dataset_split: each.metric_value for each in ModelCard(text).data.eval_results or []}
    written = result(finished.runs[kind])
    expected = {
        "pretrain": lambda: {},
        "finetune": lambda: {part: written[part]["top1"] for part in ("validation", "test")},
        "probe": lambda: {part: each["rmse"] for part, each in written["metrics"].items()},
    }[kind]()
    assert results == {part: round(value, 4) for part, value in expected.items()}
    assert bool(results) == (kind != "pretrain")


def rendered(text: str):
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    return parser.enable("table").parse(text)


def pieces(text: str) -> list:
    return [piece for token in rendered(text) for piece in [token, *(token.children or ())]]


def test_names_are_escaped(finished):
    """As Markdown is understood by another program."""
    found = pieces(card(finished.runs["finetune"]))
    assert not [piece for piece in found if piece.type in ("image", "html_inline", "html_block")]
    assert [piece.attrs["href"] for piece in found if piece.type == "link_open"] == [
        "https://github.com/dinoviz/dinoviz"
    ]
    cells = ["".join(part.content for part in piece.children) for piece in found if piece.type == "inline"]
    for name in ODD:
        assert name in cells


def test_hostile_names_of_run_and_data_are_escaped(tmp_path):
    data = tmp_path / "x\n```\n![x](\\\\evil.example)\n<b>"
    data.mkdir()
    run = Run.create("a", "pretrain", settings(data).to_dict(), root=tmp_path)
    run = Run(run.folder.rename(tmp_path / '<img src=x> "quoted" ![y](z)'))
    text = card(run)
    assert not [piece for piece in pieces(text) if piece.type in ("image", "html_inline", "html_block")]
    compile(block(text, "python"), "card", "exec")
    assert text.count("\n```\n") == 2


def test_a_queued_run_has_a_card(tmp_path):
    run = Run.create("a", "pretrain", settings(tmp_path).to_dict(), root=tmp_path, state="queued")
    run.set_status("queued", step=None, steps=None)
    assert "queued at step 0 of 0" in card(run)
    assert "**Time** unknown" in card(run)


def test_the_demo_is_named(tmp_path):
    run = Run.create("a", "pretrain", replace(settings(tmp_path), data=()).to_dict(), root=tmp_path)
    assert "**Data** the built-in demo" in card(run)
    assert block(card(run), "sh").startswith("python -m training pretrain --demo ")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("dinov2-small", "dinov2-small"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("HOME/runs/first", "first"),
        ("HOME/runs/first/snapshots/step-00000012", "first at step 12"),
    ],
)
def test_the_start_is_named(start, name, tmp_path):
    config: Config = settings(tmp_path, start=start.replace("HOME", str(tmp_path)))
    text = card(Run.create("a", "pretrain", config.to_dict(), root=tmp_path / "runs"))
    assert f"**From** {name}." in text
    assert f"{tmp_path}{os.sep}" not in text


def test_settings_of_another_version_are_reported(tmp_path):
    run = Run.create("a", "pretrain", {**settings(tmp_path).to_dict(), "loss": "new"}, root=tmp_path)
    assert block(card(run), "sh").startswith("# the settings cannot be read: ")
