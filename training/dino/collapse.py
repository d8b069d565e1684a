"""Statistics that show collapse, and alarms that name the likely cause when a run collapses or diverges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from dinoviz.errors import DinovizError
from training.config.pretrain import PretrainConfig
from training.dino.multicrop import GLOBALS
from training.engine import distributed

# Share of the information that the batch allows; below it, all images have the same target.
SAME_TARGET = 0.01
# Share of log K; above it one common target is as good as uniform, below it, it prefers some prototypes.
UNIFORM = 0.9
SPREAD = 0.05  # of the embeddings; random directions have 1
FEW = 0.3  # share of the nats that the batch allows; below it, all targets together use e.g. 3 prototypes of 256
SHARP = 0.8  # of the student's temperature; DINO trains with 0.07 to 0.1
TOO_NEAR = 0.05  # mean distance of unit vectors to their nearest neighbour, as KoLeo measures it
WORSE_THAN_CHANCE = 1.2  # times the loss of an untrained student
# Share of log K. Sinkhorn-Knopp balances the targets whatever the teacher's output, so only the student's loss shows
# that they have become noise.
CHANCE = 0.01
# Share of the run, and least number of steps, for which a state must last: every run begins with an untrained teacher.
PATIENCE, LEAST_PATIENCE = 0.1, 20

LOWER_LR = "The learning rate is probably too high: lower lr, or make warmup_epochs longer."


class DivergedError(DinovizError):
    """A loss or gradient that is not finite; the message names the likely cause."""


def check_finite(value: float, step: int) -> None:
    """Raise DivergedError unless a loss or the norm of a gradient is finite."""
    if not math.isfinite(value):
        raise DivergedError(f"The loss or its gradient is not finite at step {step}. {LOWER_LR}")


@torch.no_grad()
def statistics(targets: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """Statistics of one step over all processes.

    Args:
        targets: the teacher's targets (G, B, K).
        tokens: the student's CLS tokens (G, B, D).

    Returns:
        teacher_entropy: mean entropy of a target in nats. teacher_kl: its divergence from uniform, log K - entropy.
        teacher_information: entropy of the mean target less teacher_entropy, the mutual information of image and
        prototype; 0 when all images have the same target. embedding_spread: standard deviation over the batch of the
        L2-normalised CLS tokens, times sqrt(D): 1 for random directions, 0 when all are the same.
    """
    exact = torch.float32 if targets.device.type == "mps" else torch.float64  # which MPS lacks
    p = targets.flatten(0, 1).to(exact)
    entropy = distributed.mean(-torch.xlogy(p, p).sum(-1).mean())
    marginal = distributed.mean(p.mean(0))
    unit = F.normalize(distributed.gathered(tokens.detach()).to(exact).flatten(0, 1), dim=-1)
    spread = unit.std(0, unbiased=False).mean() * unit.shape[-1] ** 0.5
    return {
        "teacher_entropy": float(entropy),
        "teacher_kl": math.log(p.shape[-1]) - float(entropy),
        "teacher_information": float(-torch.xlogy(marginal, marginal).sum() - entropy),
        "embedding_spread": float(spread),
    }


@dataclass
class Monitor:
    """Watches the records of a run and raises an alarm when it collapses or diverges.

    config: of the run, which sets what each statistic can be. steps: of the whole run.
    since: for each problem, the step since which it lasts; saved in checkpoints.
    """

    config: PretrainConfig
    steps: int
    since: dict[str, int] = field(default_factory=dict)

    def alarm(self, record: dict) -> str | None:
        """One or two sentences if a problem has lasted, else None.

        record: step, loss, its terms (loss_dino, ...), gradient_norm and `statistics`. Raises DivergedError if loss or
        gradient are not finite.
        """
        step = record["step"]
        check_finite(record["loss"], step)
        check_finite(record["gradient_norm"], step)
        problems = {**self._collapsed(record), **self._diverged(record)}
        self.since = {name: self.since.get(name, step) for name in problems}
        patience = max(LEAST_PATIENCE, PATIENCE * self.steps)
        lasting = [name for name, start in self.since.items() if step - start >= patience]
        return problems[lasting[0]] if lasting else None

    def _collapsed(self, record: dict) -> dict[str, str]:
        """Collapse of targets and CLS tokens, by name."""
        config, problems = self.config, {}
        information, entropy = record["teacher_information"], record["teacher_entropy"]
        possible = math.log(min(config.prototypes, GLOBALS * config.batch))
        if information < SAME_TARGET * possible and entropy > UNIFORM * math.log(config.prototypes):
            sharp = config.teacher_temperature <= SHARP * config.student_temperature
            problems["uniform"] = "Collapsed: the teacher's output is uniform for every image. " + (
                LOWER_LR
                if sharp
                else "The targets are too flat: lower teacher_temperature, which must stay below student_temperature; "
                "a smaller lr may help."
            )
        elif information < SAME_TARGET * possible or information + entropy < FEW * possible:
            problems["constant"] = (
                "Collapsed: the teacher prefers the same few prototypes for all images. Use centring ema or "
                "sinkhorn, or a lower centre_momentum; a smaller lr may help."
            )
        if record["embedding_spread"] < SPREAD or record.get("loss_koleo", 0) > -GLOBALS * math.log(TOO_NEAR):
            problems["spread"] = (
                "Collapsed: the CLS tokens of all images have nearly the same direction. If this lasts, use a smaller "
                "lr, a longer warm-up, or a koleo_weight of 0.1."
            )
        return problems

    def _diverged(self, record: dict) -> dict[str, str]:
        """Terms of the loss at or above those of an untrained student, by name."""
        config, problems = self.config, {}
        uniform = math.log(config.prototypes)
        # The scores of an untrained head are cosines of random directions, whose variance adds half of itself.
        temperature = config.student_temperature
        chance = uniform + min(0.5 / config.head_bottleneck / temperature**2, 2 / temperature)
        # IBOTPatchLoss divides by all crops, masked or not.
        for name, label, most in (("dino", "DINO", chance), ("ibot", "iBOT", config.mask_probability * chance)):
            if getattr(config, f"{name}_weight") and record.get(f"loss_{name}", 0) > WORSE_THAN_CHANCE * most:
                problems[name] = (
                    f"Diverging: the {label} loss is above {most:.2f}, that of an untrained student. {LOWER_LR}"
                )
        warm = record["step"] > self.steps * config.resolved().warmup_epochs / config.epochs
        near = abs(record["loss_dino"] - uniform) < CHANCE * uniform
        if config.centring == "sinkhorn" and config.dino_weight and warm and near:
            problems["nothing"] = (
                f"Collapsed: the DINO loss stays at {uniform:.2f}, that of a student with the same output for every "
                f"image. {LOWER_LR}"
            )
        return problems
