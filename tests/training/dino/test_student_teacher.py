"""Student and teacher: outputs, learning rates of the parameters, and the EMA update."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModel

import dinoviz
from tests.conftest import FAMILIES
from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.dino import student_teacher as networks
from training.engine import vit

MICRO = {
    "dim": 24, "depth": 3, "heads": 3, "patch": 4, "mlp_ratio": 2.0, "global_size": 16, "local_size": 8,
    "prototypes": 11, "head_hidden": 16, "head_bottleneck": 8,
}  # fmt: skip
WITH_MASK_TOKEN = tuple(family for family in FAMILIES if family != "vit")


def micro(**changes) -> PretrainConfig:
    return PretrainConfig(**MICRO | changes)


def pair(**changes) -> tuple[networks.DINO, networks.DINO]:
    torch.manual_seed(0)
    config = micro(**changes)
    return networks.student_and_teacher(networks.new_backbone(config), config)


def tiny_model(folder, family: str) -> torch.nn.Module:
    extra = {"add_pooling_layer": False} if family == "vit" else {}
    return AutoModel.from_pretrained(folder, **extra)


def crops_of(images: int, sizes: dict[int, int]) -> list[torch.Tensor]:
    """{size: crops} -> one batch for each size."""
    torch.manual_seed(1)
    return [torch.randn(count * images, 3, size, size) for size, count in sizes.items()]


def test_scores_of_a_batch_equal_those_of_single_crops():
    dino = pair()[0].eval()
    batches = crops_of(3, {16: 2, 8: 4})
    scores = dino(batches, images=3)
    assert scores.cls.shape == (6, 3, 11)
    assert scores.tokens.shape == (2, 3, 24)
    assert scores.patches is None
    crops = [image for batch in batches for image in batch]  # crop by crop, the images within
    for at, image in enumerate(crops):
        cls = dino.backbone(image[None]).last_hidden_state[0, 0]
        torch.testing.assert_close(scores.cls[at // 3, at % 3], dino.head(cls), atol=1e-5, rtol=0)
        if at < 6:
            torch.testing.assert_close(scores.tokens[at // 3, at % 3], cls, atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_computing_the_cls_token_only_changes_neither_outputs_nor_gradients(registers, drop_path, monkeypatch):
    """Without iBOT the last block leaves out the patches."""
    student, teacher = pair(registers=registers, drop_path=drop_path)
    batches = crops_of(3, {16: 2, 8: 4})

    def results() -> list[torch.Tensor]:
        torch.manual_seed(2)
        scores = student(batches, 3)
        student.zero_grad()
        (scores.cls.square().sum() + scores.tokens.square().sum()).backward()
        trained = [p for p in student.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)  # DDP would wait for it
        return [scores.cls, scores.tokens, *[p.grad.clone() for p in trained], teacher(batches[:1], 3).cls]

    sizes = []
    hook = vit.blocks(student.backbone)[-1].register_forward_hook(lambda _, __, out: sizes.append(out.shape[1]))
    short = results()
    assert sizes == [1, 1]
    monkeypatch.setattr(networks, "_cls_alone", lambda _: nullcontext())
    for mine, wanted in zip(short, results(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
    assert sizes[2:] == [1 + registers + 16, 1 + registers + 4]
    hook.remove()


def test_the_backbone_itself_still_returns_all_tokens():
    """Snapshots, k-NN and the export use the same module."""
    teacher = pair()[1]
    (batch,) = crops_of(1, {16: 2})
    teacher([batch], 1)
    assert teacher.backbone(batch).last_hidden_state.shape == (2, 17, 24)
    assert "forward" not in vars(vit.blocks(teacher.backbone)[-1])


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("own_head", [False, True])
def test_patch_scores_are_in_the_order_of_the_masks(registers, own_head):
    """Image by image, row by row of the grid, without CLS token and registers."""
    dino = pair(registers=registers, ibot_weight=1, ibot_head=own_head)[1]
    (batch,) = crops_of(2, {16: 2})
    masks = torch.rand(4, 16) < 0.4
    head = dino.patch_head if own_head else dino.head
    assert (dino.patch_head is not None) == own_head
    wanted = []
    for image, mask in zip(batch, masks, strict=True):
        tokens = dino.backbone(image[None]).last_hidden_state[0]
        wanted += [head(tokens[1 + registers + at]) for at in range(16) if mask[at]]
    torch.testing.assert_close(dino([batch], 2, masks).patches, torch.stack(wanted), atol=1e-5, rtol=0)


def test_masks_change_the_output_of_masked_crops_only():
    dino = pair(ibot_weight=1)[0].eval()
    batches = crops_of(2, {16: 2, 8: 1})
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[1, 3:7] = True
    visible, hidden, plain = dino(batches, 2, masks), dino(batches, 2, masks, hide=True), dino(batches, 2)
    torch.testing.assert_close(visible.cls, plain.cls)
    changed = (hidden.cls - plain.cls).abs().amax(-1) > 1e-4
    assert changed.tolist() == [[False, True], [False, False], [False, False]]  # the first crop of the second image
    assert (hidden.patches - visible.patches).abs().max() > 1e-4


def test_the_output_does_not_depend_on_masked_pixels():
    dino = pair(ibot_weight=1)[0].eval()
    (batch,) = crops_of(1, {16: 2})
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, 5] = True  # row 1, column 1 of 4 x 4 patches of 4 pixels
    other = batch.clone()
    other[0, :, 4:8, 4:8] = 7
    torch.testing.assert_close(dino([other], 1, masks, hide=True).cls, dino([batch], 1, masks, hide=True).cls)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_trained(family, tiny_folders):
    """With the scores of transformers' own forward pass, and with masks in families that have a mask token."""
    ibot = family in WITH_MASK_TOKEN
    config = micro(start="x", ibot_weight=float(ibot))
    model = tiny_model(tiny_folders[family], family)
    student, teacher = networks.student_and_teacher(model, config)
    patch = model.config.patch_size
    batches = crops_of(2, {3 * patch: 2, 2 * patch: 1})
    masks = torch.rand(4, 9) < 0.5 if ibot else None
    scores = teacher(batches, 2, masks)
    plain = {"interpolate_pos_encoding": True} if family == "vit" else {}
    cls = torch.cat([teacher.backbone(batch, **plain).last_hidden_state[:, 0] for batch in batches])
    torch.testing.assert_close(scores.cls.flatten(0, 1), teacher.head(cls), atol=1e-5, rtol=0)
    found = student(batches, 2, masks, hide=True)
    found.cls.sum().backward()
    if ibot:
        assert found.patches.shape == (masks.sum(), 11)
    without = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DDP would wait for each


def test_models_that_dinoviz_loads_can_be_trained(tiny_folders):
    """They are frozen, and have hooks for the views."""
    model = dinoviz.load(tiny_folders["dinov2"], device="cpu", dtype=torch.float32).model
    student, teacher = networks.student_and_teacher(model, micro(start="x"))
    student(crops_of(2, {42: 2}), 2).cls.square().sum().backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in student.parameters()) > 40
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_teacher_starts_as_the_students_copy_and_is_never_trained():
    student, teacher = pair(ibot_weight=1, drop_path=0.5)
    assert student.training
    assert not any(module.training for module in teacher.modules())
    for mine, its in zip(student.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()
    batches = crops_of(2, {16: 2})
    (student(batches, 2).cls * teacher(batches, 2).cls).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_ema_update_equals_a_loop_over_the_parameters():
    student, teacher = (dino.double() for dino in pair())
    generator = torch.Generator().manual_seed(3)
    wanted = {name: p.detach().numpy().copy() for name, p in teacher.named_parameters()}
    for momentum in (0.996, 0.9, 0.0, 1.0):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, p in student.named_parameters():
            wanted[name] = momentum * wanted[name] + (1 - momentum) * p.detach().numpy()
        networks.ema_update(teacher, student, momentum)
        for name, p in teacher.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), wanted[name], rtol=1e-12, atol=1e-12)


def depth_by_hand(name: str, blocks: int) -> int:
    """DINOv2's `get_vit_lr_decay_rate`, on the names that transformers gives."""
    if name.startswith("embeddings."):
        return 0
    found = re.fullmatch(r"(?:\w+\.)?layers?\.(\d+)\..+", name)
    return int(found[1]) + 1 if found else blocks + 1


def decays_by_hand(name: str) -> bool:
    """DINO's `get_params_groups`: neither biases nor norms; as in DINOv2, nor layer scales."""
    return not (name.endswith(".bias") or "norm" in name or "lambda" in name)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_trained_parameter_has_the_published_rate_and_decay(family, frozen, tiny_folders):
    model = tiny_model(tiny_folders[family], family)
    blocks = model.config.num_hidden_layers
    config = micro(start="x", ibot_weight=float(family in WITH_MASK_TOKEN), freeze_layers=frozen)
    student, _ = networks.student_and_teacher(model, config)
    names = {id(p): name for name, p in student.named_parameters()}
    found = {}
    for group in vit.parameter_groups(student, student.backbone, layer_decay=0.7):
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = (pytest.approx(group["lr_scale"]), group["decays"])
    wanted = {}
    for name in names.values():
        inner = name.removeprefix("backbone.")
        depth = depth_by_hand(inner, blocks) if inner != name else blocks + 1
        if frozen and depth <= frozen:
            continue  # the embedding and the lowest block
        wanted[name] = (0.7 ** (blocks + 1 - depth), decays_by_hand(name))
    assert found == wanted
    assert len({rate for rate, _ in wanted.values()}) == blocks + 2 - (1 + frozen if frozen else 0)


def test_frozen_layers_have_no_gradient_and_the_others_do(tiny_folders):
    model = tiny_model(tiny_folders["dinov2"], "dinov2")
    student, _ = networks.student_and_teacher(model, micro(start="x", freeze_layers=2))
    student(crops_of(1, {42: 2}), 1).cls.square().sum().backward()
    for name, p in student.backbone.named_parameters():
        assert (p.grad is None) == name.startswith(("embeddings.", "encoder.layer.0.", "encoder.layer.1.")), name


def test_the_mask_token_is_trained_with_ibot_alone():
    assert not pair()[0].backbone.embeddings.mask_token.requires_grad
    student, _ = pair(ibot_weight=1)
    masks = torch.ones(4, 16, dtype=torch.bool)
    student(crops_of(2, {16: 2}), 2, masks, hide=True).patches.square().sum().backward()
    assert student.backbone.embeddings.mask_token.grad.abs().sum() > 0


def test_drop_path_grows_linearly_and_is_off_in_the_teacher():
    student, teacher = pair(drop_path=0.4)
    rates = [block.drop_path.probability for block in vit.blocks(student.backbone)]
    assert rates == pytest.approx([0, 0.2, 0.4])
    batches = crops_of(4, {16: 2})
    torch.manual_seed(0)
    assert not torch.equal(student(batches, 4).cls, student(batches, 4).cls)
    assert torch.equal(teacher(batches, 4).cls, teacher(batches, 4).cls)
    torch.testing.assert_close(student.eval()(batches, 4).cls, teacher(batches, 4).cls)


def test_drop_path_skips_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    drop = vit.DropPath(0.3).train()
    out = drop(torch.ones(20_000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, torch.where(kept[:, None, None], out[kept][0], 0).expand_as(out))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)  # 4.6 standard errors
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(torch.ones(3, 1)), torch.ones(3, 1))


def test_a_new_backbone_has_the_shape_of_the_configuration():
    model = networks.new_backbone(micro(registers=2, layer_scale=0.5))
    assert model.embeddings.register_tokens.shape == (1, 2, 24)
    assert len(vit.blocks(model)) == 3
    block = vit.blocks(model)[0]
    assert torch.equal(block.layer_scale1.lambda1, torch.full((24,), 0.5))
    assert block.mlp.fc1.weight.shape == (48, 24)
    assert model(torch.zeros(1, 3, 16, 16)).last_hidden_state.shape == (1, 1 + 2 + 16, 24)


def test_refuses_settings_that_a_model_does_not_support(tiny_folders):
    vit = tiny_model(tiny_folders["vit"], "vit")
    with pytest.raises(ConfigError, match=r"freeze_layers.* 2"):
        networks.student_and_teacher(vit, micro(start="x", freeze_layers=3))
    with pytest.raises(ConfigError, match=r"mask token.*'vit'"):
        networks.student_and_teacher(vit, micro(start="x", ibot_weight=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_works_in_a_family_or_is_refused(family, tiny_folders):
    model = tiny_model(tiny_folders[family], family)
    config = micro(start="x", drop_path=0.9)
    if family == "vit":
        with pytest.raises(ConfigError, match=r"drop_path.*'vit'"):
            networks.student_and_teacher(model, config)
        return
    student, _ = networks.student_and_teacher(model, config)
    last, x = vit.blocks(student.backbone)[-1], torch.randn(200, 5, model.config.hidden_size)
    extra = {"position_embeddings": (torch.ones(1, 16), torch.zeros(1, 16))} if family == "dinov3_vit" else {}
    unchanged = (last(x, **extra) == x).flatten(1).all(1)
    assert unchanged.float().mean().item() == pytest.approx(0.81, abs=0.15)  # both branches skipped: 0.9 squared
