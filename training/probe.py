"""The depth probe: a linear layer on frozen features that tells how far away each patch is, as DINOv2 evaluated it.

Patches of one or more layers are joined with the CLS token; a linear layer gives each of 256 depths, evenly spaced, a
weight; the depth is their weighted mean (Oquab et al. 2024, section 7.4; AdaBins, Bhat et al. 2021). Other than
published: tokens are taken after the final norm, each picture is encoded once and so not augmented, and of the two
losses there is the scale-invariant one only.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import dinoviz
from dinoviz.backbone import Backbone
from dinoviz.errors import DinovizError, Stopped
from dinoviz.files import whole
from dinoviz.images import PatchGrid
from training.clock import BEAT
from training.protocols import Progress
from training.rgbd import Pair, counts, depth_errors, find_pairs
from training.runs import Run
from training.schedules import cosine
from training.stopping import reopen, working
from training.task_config import ProbeConfig

EPSILON = 1e-3  # metres; keeps logarithms finite, as published
BASE_WEIGHT = 0.1  # of each depth before the linear layer says anything (AdaBins' "linear" normalisation)


class ProbeError(DinovizError):
    """A probe that cannot be trained or opened; the message says why."""


class DepthHead(nn.Module):
    """Features (B, h, w, D) and CLS (B, D) -> depth (B, h * upsample, w * upsample) in metres.

    The same as one linear layer on patch and CLS joined, and as upsampling the features before it: both are linear.
    """

    def __init__(self, dim: int, bins: int, near: float, far: float, upsample: int):
        super().__init__()
        self.patch, self.cls = nn.Linear(dim, bins), nn.Linear(dim, bins, bias=False)
        self.upsample = upsample
        self.register_buffer("depths", torch.linspace(near, far, bins))

    def forward(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        weights = (self.patch(patches) + self.cls(cls)[:, None, None]).permute(0, 3, 1, 2)
        if self.upsample > 1:
            weights = F.interpolate(weights, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        weights = weights.relu() + BASE_WEIGHT
        return torch.einsum("bkhw,k->bhw", weights, self.depths) / weights.sum(1)


def scale_invariant_loss(predicted: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """sqrt(Var(g) + 0.15 mean(g)^2) of g = log(predicted) - log(depth) over the valid pixels (as DINOv2's SigLoss)."""
    g = (predicted[valid] + EPSILON).log() - (depth[valid] + EPSILON).log()
    return (g.var() + 0.15 * g.mean() ** 2).sqrt()


class _Encoded:
    """Pairs with their features in half precision, and their depth at model size; all in memory."""

    def __init__(self, pairs: list[Pair], backbone: Backbone, config: ProbeConfig, progress: Progress, budget: float):
        self.pairs = pairs
        self.patches: list[torch.Tensor] = []  # (h, w, L * D) float16
        self.cls: list[torch.Tensor] = []  # (L * D,) float32
        self.depth: list[torch.Tensor] = []  # (H, W) float32 in metres
        self.valid: list[torch.Tensor] = []
        for i, pair in enumerate(pairs):
            picture, depth = pair.open()
            grid = PatchGrid.fit(picture.size, config.resolution, backbone.patch_size)
            patches, cls = encode(backbone, picture, grid, config.layers)
            needed = len(pairs) * (patches.nbytes + 5 * grid.model_size[0] * grid.model_size[1])
            if needed > budget:
                raise ProbeError(
                    f"The features of {len(pairs)} images at {config.resolution} px take about "
                    f"{needed / 2**30:.1f} GB, more than the {budget / 2**30:.1f} GB allowed; "
                    "lower the resolution, the layers or the limit."
                )
            small = np.asarray(Image.fromarray(depth).resize(grid.model_size, Image.Resampling.NEAREST))
            self.patches.append(patches)
            self.cls.append(cls)
            self.depth.append(torch.from_numpy(small.copy()))
            self.valid.append(torch.from_numpy(counts(small, config.crop, config.depth[1])))
            progress(i + 1, len(pairs), "encoding")

    def order(self, batch: int, rng: np.random.Generator | None = None) -> list[list[int]]:
        """Batches of pictures of one size each; shuffled with rng."""
        by_size: dict[tuple, list[int]] = {}
        for i in range(len(self.pairs)) if rng is None else rng.permutation(len(self.pairs)).tolist():
            by_size.setdefault((self.patches[i].shape, self.depth[i].shape), []).append(i)
        found = [same[i : i + batch] for same in by_size.values() for i in range(0, len(same), batch)]
        return found if rng is None else [found[i] for i in rng.permutation(len(found))]

    def predict(self, head: DepthHead, part: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(predicted, depth, valid), each (B, H, W) at model size."""
        device = head.depths.device
        patches, cls, depth, valid = (
            torch.stack([values[i] for i in part]).to(device)
            for values in (self.patches, self.cls, self.depth, self.valid)
        )
        predicted = head(patches.float(), cls)
        size = tuple(depth.shape[1:])
        predicted = F.interpolate(predicted[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return predicted, depth, valid


def encode(backbone: Backbone, picture: Image.Image, grid: PatchGrid, layers) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head is given of a picture: (h, w, L * D) float16 and the CLS tokens (L * D,) float32, on the CPU."""
    pixels = np.asarray(picture.resize(grid.model_size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    tokens = torch.cat(backbone.tokens(torch.from_numpy(pixels).permute(2, 0, 1)[None], layers), dim=2)[0].cpu()
    return tokens[1 + backbone.registers :].reshape(*grid.shape, -1).half(), tokens[0]


def probe(config: ProbeConfig, run: Run, progress: Progress | None = None) -> dict | None:
    """Train a depth probe in a run of kind "probe"; write export/probe.safetensors, see `open_probe`.

    Returns what is said of it in the file's header, or None if the run was asked to stop. Raises DinovizError for data
    and settings that cannot be.
    """
    progress = progress or (lambda done, of, what: None)
    with working(run) as asked_to_stop:
        run.set_status("running", step=0, message="encoding the images")

        def heard(done: int, of: int, what: str) -> None:
            if asked_to_stop():
                raise Stopped
            progress(done, of, what)

        pairs = find_pairs(config.data, config.limit)
        if len(pairs) < 2:
            raise ProbeError("A probe needs at least two images, one of them to check on; there is only one.")
        test = find_pairs(config.test) if config.test else []
        backbone = dinoviz.load(config.model, device=config.device or None)
        chosen = np.random.default_rng(config.seed).permutation(len(pairs))
        held = set(chosen[: max(1, round(config.validation * len(pairs)))].tolist())
        budget = config.memory_gb * 2**30
        train, validation = (
            _Encoded(part, backbone, config, heard, budget * len(part) / len(pairs))
            for part in (
                [pair for i, pair in enumerate(pairs) if i not in held],
                [pair for i, pair in enumerate(pairs) if i in held],
            )
        )
        head, best = _train(config, backbone, train, validation, run, heard)
        metrics = {"validation": _errors(validation.pairs, head, backbone, config)}
        if test:
            metrics["test"] = _errors(test, head, backbone, config)
        about = {
            "backbone": backbone.name,
            "weights_id": backbone.weights_id,
            "layers": [layer % backbone.layers for layer in config.layers],
            "resolution": config.resolution,
            "bins": config.bins,
            "depth": list(config.depth),
            "upsample": config.upsample,
            "crop": config.crop,
            "metrics": metrics,
            "epoch": best["epoch"],
            "data": {"folder": Path(config.data).name, "train": len(train.pairs), "validation": len(validation.pairs)},
        }
        _export(head, about, run)
        run.set_status("finished", eta=0, message=", ".join(f"{k} {v:.3f}" for k, v in metrics["validation"].items()))
        return about
    return None


def resume(run: Run, progress: Progress | None = None) -> dict | None:
    """Begin again: the head learns in minutes, so that a probe keeps no checkpoints; as `probe`.

    Raises RunError too for a run of another kind, at work or finished.
    """
    reopen(run, "probe")
    config = ProbeConfig.from_dict(run.config)
    run.truncate_metrics(0)
    return probe(config, run, progress)


def _train(config, backbone, train: _Encoded, validation: _Encoded, run: Run, progress: Progress):
    """(the head with the weights of the best epoch, {epoch, rmse})."""
    torch.manual_seed(config.seed)
    head = DepthHead(train.cls[0].numel(), config.bins, *config.depth, config.upsample).to(backbone.device)
    optimizer = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    epoch_steps = len(train.order(config.batch))
    steps, step, best, kept = config.epochs * epoch_steps, 0, {}, {}
    began, beat = time.monotonic(), 0.0
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for part in train.order(config.batch, np.random.default_rng([config.seed, epoch])):
            optimizer.param_groups[0]["lr"] = cosine(step, steps, config.lr, 0.0)
            loss = scale_invariant_loss(*train.predict(head, part))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise ProbeError(f"The loss is no longer a number at step {step + 1}; a lower rate may help.")
            step, total = step + 1, total + float(loss.detach())
            progress(step, steps, f"epoch {epoch}")
            if time.monotonic() - beat > BEAT:
                beat = time.monotonic()
                run.set_status("running", step=step, steps=steps, eta=(beat - began) / step * (steps - step))
        rmse = _validation_rmse(head, validation, config.batch)
        run.add_metrics({"step": step, "epoch": epoch, "loss": total / epoch_steps, "validation_rmse": rmse})
        if not best or rmse < best["rmse"]:
            best, kept = {"epoch": epoch, "rmse": rmse}, {k: v.clone() for k, v in head.state_dict().items()}
        if epoch - best["epoch"] >= config.patience:
            break
    head.load_state_dict(kept)
    return head.eval(), best


@torch.no_grad()
def _validation_rmse(head: DepthHead, validation: _Encoded, batch: int) -> float:
    squares = [
        ((p - t)[v] ** 2).mean()
        for part in validation.order(batch)
        for p, t, v in zip(*validation.predict(head, part), strict=True)
        if v.any()
    ]
    return float(torch.stack(squares).sqrt().mean())


@torch.no_grad()
def _errors(pairs: list[Pair], head: DepthHead, backbone: Backbone, config: ProbeConfig) -> dict[str, float]:
    """Mean over the pictures, each at its full resolution, as published; those without a pixel that counts are left."""
    found = []
    for pair in pairs:
        picture, depth = pair.open()
        valid = counts(depth, config.crop, config.depth[1])
        if valid.any():
            found.append(
                depth_errors(predict_depth(backbone, head, picture, config.resolution, config.layers), depth, valid)
            )
    return {key: float(np.mean([each[key] for each in found])) for key in ("rmse", "abs_rel", "delta1")}


@torch.no_grad()
def predict_depth(backbone: Backbone, head: DepthHead, picture: Image.Image, resolution: int, layers) -> np.ndarray:
    """Depth of a picture, (H, W) float32 in metres at its own size."""
    grid = PatchGrid.fit(picture.size, resolution, backbone.patch_size)
    patches, cls = encode(backbone, picture, grid, layers)
    predicted = head(patches[None].float().to(head.depths.device), cls[None].to(head.depths.device))
    size = (picture.height, picture.width)
    return F.interpolate(predicted[:, None], size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def _export(head: DepthHead, about: dict, run: Run) -> None:
    try:
        run.export_folder.mkdir(exist_ok=True)
        with whole(run.export_folder / "probe.safetensors") as part:
            weights = {name: value.cpu().contiguous() for name, value in head.state_dict().items()}
            safetensors.torch.save_file(weights, part, metadata={"probe": json.dumps(about)})
    except OSError as error:
        raise ProbeError(f"{run.export_folder} cannot be written: {error.strerror or error}.") from None


def open_probe(path: str | Path) -> tuple[DepthHead, dict]:
    """The head in a probe.safetensors, or in the run that made it, and what its header says. Raises ProbeError."""
    path = Path(path)
    file = path / "export" / "probe.safetensors" if path.is_dir() else path
    try:
        with safetensors.safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["probe"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dictionary
        head = DepthHead(weights["patch.weight"].shape[1], about["bins"], *about["depth"], about["upsample"])
        head.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError):
        raise ProbeError(f"{path} holds no depth probe that can be read.") from None
    return head.eval().requires_grad_(False), about
