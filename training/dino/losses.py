"""The losses of DINO and DINOv2: the DINO loss on CLS tokens, the iBOT loss on patches, and KoLeo.

Alphabet: B images, C student crops (the G global ones first), K prototypes, M masked patches, D channels.
Inputs are the scores (cosines) of teacher and student heads; temperatures are applied here. Scores may be in half
precision: everything is computed in float32, also under autocast, because scores divided by a temperature are large,
and sums over K or B would keep two or three digits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from training.engine import distributed


def _float(scores: torch.Tensor) -> torch.Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


class Centring(nn.Module):
    """Turns the teacher's scores into targets and prevents collapse.

    "ema": softmax((scores - centre) / temperature), the centre a moving average of the batches' mean scores
    (Caron et al. 2021, equation 4). "sinkhorn": Sinkhorn-Knopp, so that each batch uses all prototypes equally
    (Caron et al. 2020, SwAV; as in DINOv2). "none": softmax alone, which collapses.
    """

    def __init__(self, prototypes: int, kind: str = "ema", momentum: float = 0.9):
        super().__init__()
        self.kind, self.momentum = kind, momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        # Sums over the microbatches until `update`, so that gradient accumulation equals the whole batch.
        self._sum, self._rows = 0.0, 0

    @torch.no_grad()
    def forward(self, scores: torch.Tensor, temperature: float) -> torch.Tensor:
        """(R, K) -> probabilities (R, K), rows that sum to 1."""
        scores = _float(scores)
        if self.kind == "sinkhorn":
            return sinkhorn_knopp(scores, temperature)
        if self.kind == "none":
            return torch.softmax(scores / temperature, dim=-1)
        self._sum, self._rows = self._sum + scores.sum(0), self._rows + len(scores)
        return torch.softmax((scores - self.centre) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre towards the mean of all rows since the last call, over all processes. Once a step."""
        if self.kind != "ema":
            return
        rows = distributed.total(torch.tensor(float(self._rows), device=self.centre.device))
        if rows > 0:
            local = self._sum if self._rows else torch.zeros_like(self.centre)
            self.centre.lerp_(distributed.total(local) / rows, 1 - self.momentum)
        self._sum, self._rows = 0.0, 0


@torch.no_grad()
def sinkhorn_knopp(scores: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Probabilities (R, K) with rows that sum to 1 and columns that sum, nearly, to R / K over all processes.

    Alternates the normalisation of columns and rows of exp(scores / temperature); the rows come last.
    Source: Cuturi 2013; DINOv2's `sinkhorn_knopp_teacher`.
    """
    # In logarithms: at low temperatures exp overflows, or all weights of an image underflow to a sum of 0.
    log_q = _float(scores) / temperature
    for _ in range(iterations):
        lowest = log_q.new_full(log_q.shape[1:], torch.finfo(log_q.dtype).min)
        top = distributed.largest(log_q.amax(0) if len(log_q) else lowest)  # a process may have no masked patch
        log_q = log_q - top - distributed.total((log_q - top).exp().sum(0)).log()
        log_q = torch.log_softmax(log_q, dim=1)
    return log_q.exp()


class DINOLoss(nn.Module):
    """Cross-entropy of every teacher global crop against every other student crop (Caron et al. 2021, equation 3)."""

    def __init__(self, centring: Centring, student_temperature: float = 0.1):
        super().__init__()
        self.centring, self.temperature = centring, student_temperature

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, teacher_temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """student: (C, B, K), teacher: (G, B, K), of which the first G crops are the same.

        Returns the mean over pairs and images, and the targets (G, B, K).
        """
        crops, teachers = len(student), len(teacher)
        targets = self.centring(teacher.flatten(0, 1), teacher_temperature).view_as(teacher)
        logits = _float(student) / self.temperature
        # -sum p log softmax(z) = logsumexp(z) - p.z, since p sums to 1; and the pairs of one teacher crop share p,
        # so that C x G products become G + 1 passes over K. No matrix products: autocast would halve their precision.
        pairs_of_crop = torch.full((crops,), float(teachers), device=logits.device, dtype=logits.dtype)
        pairs_of_crop[:teachers] -= 1
        entropy = (pairs_of_crop * torch.logsumexp(logits, dim=-1).mean(1)).sum()
        others = logits.sum(0) - logits[:teachers]
        agreement = (targets * others).sum() / logits.shape[1]
        return (entropy - agreement) / (teachers * (crops - 1)), targets


class IBOTPatchLoss(nn.Module):
    """Cross-entropy of the student's masked patches against the teacher's, whose input is not masked.

    Every masked image has the same weight, for any number of masked patches, and the sum is divided by the number of
    images, masked or not. Source: Zhou et al. 2022, equation 2; weights as in DINOv2's `iBOTPatchLoss.forward_masked`.
    """

    def __init__(self, centring: Centring, student_temperature: float = 0.1):
        super().__init__()
        self.centring, self.temperature = centring, student_temperature

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, masks: torch.Tensor, teacher_temperature: float
    ) -> torch.Tensor:
        """student, teacher: scores of the masked patches (M, K) in the order of masks (images, N) bool."""
        targets = self.centring(teacher, teacher_temperature)
        logits = _float(student) / self.temperature
        loss = torch.logsumexp(logits, dim=-1) - (targets * logits).sum(-1)
        weights = (1 / masks.sum(1).clamp_min(1)).repeat_interleave(masks.sum(1)).to(loss.dtype)
        return (loss * weights).sum() / len(masks)


class KoLeoLoss(nn.Module):
    """Kozachenko-Leonenko estimate of differential entropy, negated: maximises the distance to the nearest neighbour.

    Source: Sablayrolles et al. 2019, section 3; DINOv2, section 4. Neighbours are searched over all processes.
    """

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, D) of one crop per image, because two crops of one image would be neighbours."""
        x = F.normalize(distributed.gathered(_float(tokens)), dim=-1, eps=self.eps)
        if len(x) < 2:
            return x.sum() * 0
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            similarity = x @ x.T
            nearest = similarity.fill_diagonal_(-1).argmax(1)
        return -torch.log(F.pairwise_distance(x, x[nearest], eps=self.eps) + self.eps).mean()
