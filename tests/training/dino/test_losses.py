"""The losses against loops over the papers' equations (`reference`), values and gradients, in float64."""

import numpy as np
import pytest
import torch

from tests.training import reference
from training.dino.losses import Centring, DINOLoss, IBOTPatchLoss, KoLeoLoss, sinkhorn_knopp

SAME = {"rtol": 1e-6, "atol": 1e-9}


def cosines(*shape: int, seed: int = 0) -> torch.Tensor:
    """Scores as a head gives them, float64."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def equal(ours, theirs) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **SAME)


def value_and_gradient(loss, scores: torch.Tensor) -> tuple[float, np.ndarray]:
    scores = scores.clone().requires_grad_()
    value = loss(scores)
    value.backward()
    return value.item(), scores.grad.numpy()


@pytest.mark.parametrize(
    ("crops", "teachers", "images", "prototypes"), [(5, 2, 3, 7), (2, 2, 3, 4), (6, 2, 1, 5), (3, 1, 2, 3)]
)
def test_dino_loss_and_gradient_are_the_papers(crops, teachers, images, prototypes):
    """Also without local crops, with one image, with an odd number of prototypes, and with one global crop."""
    student, teacher = cosines(crops, images, prototypes), cosines(teachers, images, prototypes, seed=1)
    centring = Centring(prototypes).double()
    centring.centre.copy_(cosines(prototypes, seed=2) / 5)
    ours = value_and_gradient(lambda s: DINOLoss(centring, 0.1)(s, teacher, 0.05)[0], student)
    theirs = value_and_gradient(lambda s: reference.dino_loss(s, teacher, centring.centre, 0.1, 0.05), student)
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])


def test_dino_loss_gives_the_teachers_targets_and_leaves_the_teacher_without_gradient():
    teacher = cosines(2, 3, 5, seed=1).requires_grad_()
    loss, targets = DINOLoss(Centring(5).double())(cosines(4, 3, 5).requires_grad_(), teacher, 0.04)
    for g, image in np.ndindex(2, 3):
        row = reference.softmax(teacher[g, image].detach(), 0.04)
        equal(targets[g, image], torch.stack(row))
    loss.backward()
    assert teacher.grad is None
    assert not targets.requires_grad


def test_dino_loss_with_sinkhorn_takes_its_targets_over_both_crops():
    student, teacher = cosines(4, 3, 5), cosines(2, 3, 5, seed=1)
    targets = reference.sinkhorn_knopp(teacher.reshape(6, 5).numpy(), 0.06).reshape(2, 3, 5)
    loss = DINOLoss(Centring(5, "sinkhorn").double())
    ours = value_and_gradient(lambda s: loss(s, teacher, 0.06)[0], student)
    theirs = value_and_gradient(lambda s: reference.targeted_loss(s, torch.from_numpy(targets), 0.1), student)
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])


def test_without_centring_the_target_is_the_softmax_alone():
    scores = cosines(3, 5)
    centring = Centring(5, "none").double()
    found = centring(scores, 0.07)
    centring.update()
    for row, plain in zip(found, scores, strict=True):
        equal(row, torch.stack(reference.softmax(plain, 0.07)))
    assert not centring.centre.any()


def test_the_centre_follows_the_papers_equation_over_several_steps():
    centring, centre = Centring(5, momentum=0.8).double(), np.zeros(5)
    for step in range(4):
        scores = cosines(2, 3, 5, seed=step)
        target = reference.softmax(scores[0, 0] - torch.from_numpy(centre), 0.05)
        equal(centring(scores.flatten(0, 1), 0.05)[0], torch.stack(target))
        centring.update()
        centre = reference.moved_centre(centre, scores.numpy(), 0.8)
        equal(centring.centre, centre)


def test_a_batch_in_parts_moves_the_centre_as_the_whole_does():
    scores = cosines(12, 5)
    whole, parts = Centring(5).double(), Centring(5).double()
    whole(scores, 0.05)
    for part in scores.split([5, 4, 3]):  # unequal parts weigh by their rows
        parts(part, 0.05)
    whole.update()
    parts.update()
    equal(parts.centre, whole.centre)


def test_a_batch_in_parts_has_the_mean_of_the_parts_losses_and_gradients():
    student, teacher = cosines(4, 6, 5), cosines(2, 6, 5, seed=1)
    loss = DINOLoss(Centring(5).double())
    whole = value_and_gradient(lambda s: loss(s, teacher, 0.05)[0], student)
    parts = value_and_gradient(
        lambda s: sum(loss(s[:, i : i + 2], teacher[:, i : i + 2], 0.05)[0] / 3 for i in (0, 2, 4)), student
    )
    equal(parts[0], whole[0])
    equal(parts[1], whole[1])


def test_an_update_without_rows_leaves_the_centre():
    centring = Centring(3).double()
    centring(torch.ones(2, 3, dtype=torch.float64), 0.1)
    centring.update()
    before = centring.centre.clone()
    centring.update()
    assert torch.equal(centring.centre, before)


@pytest.mark.parametrize(("rows", "prototypes", "iterations"), [(6, 5, 3), (3, 9, 3), (1, 4, 3), (8, 3, 1), (4, 4, 10)])
def test_sinkhorn_is_the_published_order_of_normalisations(rows, prototypes, iterations):
    scores = cosines(rows, prototypes)
    found = sinkhorn_knopp(scores, 0.06, iterations)
    np.testing.assert_allclose(
        found.numpy(), reference.sinkhorn_knopp(scores.numpy(), 0.06, iterations), rtol=1e-9, atol=1e-12
    )


def test_sinkhorn_gives_each_image_one_and_each_prototype_nearly_its_share():
    found = sinkhorn_knopp(cosines(40, 8), 0.1, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found.sum(0), 5, rtol=0.15)  # three rounds do not converge
    np.testing.assert_allclose(sinkhorn_knopp(cosines(40, 8), 0.1, 100).sum(0), 5, rtol=1e-6)


MASKS = torch.tensor(
    [[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool
)  # unequal counts, and images without a mask


@pytest.mark.parametrize("kind", ["ema", "sinkhorn"])
def test_ibot_loss_and_gradient_are_the_papers(kind):
    student, teacher = cosines(9, 7), cosines(9, 7, seed=1)
    if kind == "ema":
        targets = torch.stack([torch.stack(reference.softmax(row, 0.05)) for row in teacher])
    else:
        targets = torch.from_numpy(reference.sinkhorn_knopp(teacher.numpy(), 0.05))
    loss = IBOTPatchLoss(Centring(7, kind).double())
    ours = value_and_gradient(lambda s: loss(s, teacher, MASKS, 0.05), student)
    theirs = value_and_gradient(lambda s: reference.ibot_loss(s, targets, MASKS, 0.1), student)
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])


@pytest.mark.parametrize("kind", ["ema", "sinkhorn", "none"])
def test_ibot_loss_of_a_batch_without_masks_is_zero(kind):
    empty = torch.zeros(0, 7, dtype=torch.float64, requires_grad=True)
    centring = Centring(7, kind).double()
    loss = IBOTPatchLoss(centring)(empty, empty.detach(), MASKS[[1, 4]], 0.05)
    loss.backward()
    centring.update()
    assert loss.item() == 0
    assert not centring.centre.any()


@pytest.mark.parametrize(("images", "dim"), [(6, 4), (2, 3), (9, 16)])
def test_koleo_loss_and_gradient_are_the_papers(images, dim):
    tokens = 3 * cosines(images, dim)
    ours = value_and_gradient(KoLeoLoss(), tokens)
    theirs = value_and_gradient(reference.koleo_loss, tokens)
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])


def test_koleo_pushes_the_nearest_apart_and_tells_twins_without_infinities():
    tokens = cosines(5, 4)
    tokens[1] = tokens[0]
    value, gradient = value_and_gradient(KoLeoLoss(), tokens)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert value_and_gradient(KoLeoLoss(), tokens[:1]) == (0, pytest.approx(np.zeros((1, 4))))


@pytest.mark.parametrize("kind", ["ema", "sinkhorn", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_plus_and_minus_one_at_the_lowest_temperature_stay_finite(kind, dtype):
    """One image far from all prototypes, one on top of one, one in doubt."""
    teacher = torch.tensor([[-1, -1, -1, -1], [1, -1, -1, -1], [1, 1, 1, 1]], dtype=dtype).expand(2, 3, 4)
    student = torch.cat([teacher, -teacher]).clone().requires_grad_()
    centring = Centring(4, kind)
    loss, targets = DINOLoss(centring, 0.01)(student, teacher, 0.005)
    loss.backward()
    centring.update()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    np.testing.assert_allclose(targets.float().sum(-1), 1, atol=1e-5)
    assert torch.isfinite(centring.centre).all()


def test_sinkhorn_at_extremes_in_float32_is_the_published_one_in_float64():
    """exp overflows a float32 at 88; the scores here reach 200."""
    scores = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (6, 4)) + cosines(6, 4).numpy() / 50
    scores[0] = -1
    found = sinkhorn_knopp(torch.from_numpy(scores).float(), 0.005)
    np.testing.assert_allclose(found, reference.sinkhorn_knopp(scores, 0.005), atol=2e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["ema", "sinkhorn"])
def test_half_precision_scores_lose_nothing_more_in_the_losses(kind, autocast):
    """bfloat16 holds 3 digits: sums over prototypes and images in it would make the loss worthless."""
    student, teacher = cosines(6, 16, 64).bfloat16(), cosines(2, 16, 64, seed=1).bfloat16()
    tokens = cosines(16, 8).bfloat16()
    masks = torch.ones(16, 1, dtype=torch.bool)

    def losses(cast) -> list[float]:
        centring = cast(Centring(64, kind))
        values = [
            DINOLoss(centring)(cast(student), cast(teacher), 0.05)[0],
            IBOTPatchLoss(centring)(cast(student[0]), cast(teacher[0]), masks, 0.05),
            KoLeoLoss()(cast(tokens)),
        ]
        centring.update()
        return [*[value.item() for value in values], *centring.centre.tolist()]

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses(lambda x: x)
    np.testing.assert_allclose(found, losses(lambda x: x.double()), rtol=1e-4, atol=1e-6)
