"""The papers' equations once more, slow and plain, to check `training` against.

Written from the papers and the published code before looking at `training`: loops over images, crops and prototypes,
float64, no trick for speed or for extreme numbers. Where gradients are compared, the loops run on torch's scalars.
"""

import colorsys
import math

import numpy as np
import torch


def softmax(row: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    """exp(x_k / T) / sum_j exp(x_j / T)."""
    powers = [torch.exp(x / temperature) for x in row]
    whole = sum(powers)
    return [power / whole for power in powers]


def cross_entropy(target: list, student_row: torch.Tensor, temperature: float) -> torch.Tensor:
    """H(a, b) = -sum_k a_k log b_k (DINO, equation 2)."""
    return -sum(a * torch.log(b) for a, b in zip(target, softmax(student_row, temperature), strict=True))


def dino_loss(student, teacher, centre, student_temperature: float, teacher_temperature: float) -> torch.Tensor:
    """DINO's algorithm 1 and equation 3. student: (C, B, K), teacher: (G, B, K), centre: (K,)."""
    terms = []
    for g in range(len(teacher)):
        for c in range(len(student)):
            if c == g:
                continue
            for image in range(student.shape[1]):
                target = softmax(teacher[g][image].detach() - centre, teacher_temperature)
                terms.append(cross_entropy(target, student[c][image], student_temperature))
    return sum(terms) / len(terms)


def targeted_loss(student, targets, student_temperature: float) -> torch.Tensor:
    """As `dino_loss`, the teacher's probabilities (G, B, K) being given."""
    terms = [
        cross_entropy(list(targets[g][image]), student[c][image], student_temperature)
        for g in range(len(targets))
        for c in range(len(student))
        if c != g
        for image in range(student.shape[1])
    ]
    return sum(terms) / len(terms)


def moved_centre(centre: np.ndarray, scores: np.ndarray, momentum: float) -> np.ndarray:
    """c <- m c + (1 - m) 1/(2B) sum of the teacher's outputs (DINO, equation 4). scores: (G, B, K) or (R, K)."""
    rows = scores.reshape(-1, scores.shape[-1])
    moved = np.empty_like(centre)
    for k in range(len(centre)):
        mean = sum(float(row[k]) for row in rows) / len(rows)
        moved[k] = momentum * centre[k] + (1 - momentum) * mean
    return moved


def sinkhorn_knopp(scores: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """DINOv2's `sinkhorn_knopp_teacher`: Q is prototypes by samples. scores: (B, K) -> (B, K)."""
    samples, prototypes = scores.shape
    q = [[math.exp(scores[b][k] / temperature) for b in range(samples)] for k in range(prototypes)]
    whole = sum(sum(row) for row in q)
    q = [[x / whole for x in row] for row in q]
    for _ in range(iterations):
        for k in range(prototypes):  # each prototype's total weight becomes 1 / K
            total = sum(q[k])
            q[k] = [x / total / prototypes for x in q[k]]
        for b in range(samples):  # each sample's total weight becomes 1 / B
            total = sum(q[k][b] for k in range(prototypes))
            for k in range(prototypes):
                q[k][b] = q[k][b] / total / samples
    return np.array([[q[k][b] * samples for k in range(prototypes)] for b in range(samples)])


def ibot_loss(student, targets, masks, student_temperature: float) -> torch.Tensor:
    """iBOT's equation 2, each image's masked patches averaged first, as DINOv2 does; an image without any adds 0.

    student: scores of the masked patches (M, K); targets: probabilities (M, K); masks: (images, N).
    """
    losses, row = [], 0
    for mask in masks:
        of_image = []
        for hidden in mask:
            if hidden:
                of_image.append(cross_entropy(list(targets[row]), student[row], student_temperature))
                row += 1
        losses.append(sum(of_image) / len(of_image) if of_image else 0.0)
    return sum(losses) / len(losses)


def koleo_loss(tokens: torch.Tensor) -> torch.Tensor:
    """-1/n sum_i log min_{j != i} |x_i - x_j| of L2-normalised x (DINOv2, section 4). tokens: (B, D)."""
    points = [x / torch.sqrt(sum(v * v for v in x)) for x in tokens]
    logs = []
    for i, x in enumerate(points):
        distances = [torch.sqrt(sum((x - y) ** 2)) for j, y in enumerate(points) if j != i]
        logs.append(torch.log(min(distances)))
    return -sum(logs) / len(logs)


def cosine_scheduler(base, final, epochs, steps_per_epoch, warmup_epochs=0, warmup_start=0.0) -> np.ndarray:
    """DINO's `utils.cosine_scheduler`."""
    warmup_steps = warmup_epochs * steps_per_epoch
    warmup = np.linspace(warmup_start, base, warmup_steps) if warmup_epochs > 0 else np.array([])
    steps = np.arange(epochs * steps_per_epoch - warmup_steps)
    with np.errstate(invalid="ignore"):
        falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate((warmup, falling))


def resized_crop_box(width, height, scale, rng, ratio=(3 / 4, 4 / 3)) -> tuple[float, float, float, float]:
    """torchvision's `RandomResizedCrop.get_params` for one image: left, top, width, height in pixels."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def hue_shifted(picture: np.ndarray, turn: float) -> np.ndarray:
    """(H, W, 3) in [0, 1], each pixel's hue turned by a share of the circle, with Python's own colorsys."""
    out = np.empty_like(picture, dtype=np.float64)
    for at in np.ndindex(picture.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, picture[at]))
        out[at] = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    return out
