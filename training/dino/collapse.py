"""Whether a run is well: the figures to watch, and an alarm that names the likely cause when it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from dinoviz.errors import DinovizError
from training.config.pretrain import PretrainConfig
from training.dino.multicrop import GLOBALS
from training.engine import distributed

# Below this share of what the batch could tell apart, the teacher says the same of every image.
SAME_ANSWER = 0.01
# Of log K: above it a single answer is as good as uniform; between, it is a fixed preference for some prototypes.
UNIFORM = 0.9
SPREAD = 0.05  # of the embeddings' spread where they are as far apart as random directions
FEW = 0.3  # of the nats that the batch could have: below it, all targets together use e.g. 3 prototypes of 256
SHARP = 0.8  # of the student's temperature; DINO trains with 0.07 to 0.1
TOO_NEAR = 0.05  # mean distance of an image to its nearest, of unit vectors, that KoLeo finds
WORSE_THAN_GUESSING = 1.2  # times the loss of a student that knows nothing
# Of log K: Sinkhorn-Knopp balances the targets whatever the teacher says, so that only the student's loss tells
# that they have become noise.
KNOWS_NOTHING = 0.01
# Of the run, and steps at least, for which a state must last; runs begin with a teacher that knows nothing.
PATIENCE, LEAST_PATIENCE = 0.1, 20


class DivergedError(DinovizError):
    """The numbers of a run are none any more; the message names the likely cause."""


def check_number(value: float, step: int) -> None:
    """Raises DivergedError unless a loss or the norm of a gradient is finite."""
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss or its gradient is no longer a number at step {step}. The learning rate is probably too high: "
            "lower lr, or make warmup_epochs longer."
        )


@torch.no_grad()
def figures(targets: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """What the teacher's targets (G, B, K) and the student's CLS tokens (G, B, D) of one step tell, over all processes.

    teacher_entropy: mean entropy of a target in nats. teacher_kl: its distance from uniform, log K - entropy.
    teacher_information: entropy of the mean target less teacher_entropy: how much a target tells about its image;
    0 when all images get the same one. embedding_spread: standard deviation over the batch of L2-normalised CLS tokens,
    times sqrt(D): 1 for random directions, 0 when all are the same.
    """
    exact = torch.float32 if targets.device.type == "mps" else torch.float64  # which MPS does not have
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
class Watch:
    """Looks at the records of a run as they come, and says in words when something is wrong.

    config: of the run, which says what each figure can be. steps: of the whole run.
    since: for each thing that is wrong, the step since when; saved with a checkpoint.
    """

    config: PretrainConfig
    steps: int
    since: dict[str, int] = field(default_factory=dict)

    def alarm(self, record: dict) -> str | None:
        """One or two sentences if a bad state has lasted, else None.

        record: step, loss, its terms (loss_dino, ...), gradient_norm and what `figures` gives. Raises DivergedError
        where one is no number.
        """
        step = record["step"]
        check_number(record["loss"], step)
        check_number(record["gradient_norm"], step)
        wrong = {**self._collapsed(record), **self._lost(record)}
        self.since = {name: self.since.get(name, step) for name in wrong}
        patience = max(LEAST_PATIENCE, PATIENCE * self.steps)
        lasting = [name for name, start in self.since.items() if step - start >= patience]
        return wrong[lasting[0]] if lasting else None

    def _collapsed(self, record: dict) -> dict[str, str]:
        """What targets and tokens have lost, by name."""
        config, wrong = self.config, {}
        information, entropy = record["teacher_information"], record["teacher_entropy"]
        could_tell = math.log(min(config.prototypes, GLOBALS * config.batch))
        if information < SAME_ANSWER * could_tell and entropy > UNIFORM * math.log(config.prototypes):
            sharp = config.teacher_temperature <= SHARP * config.student_temperature
            wrong["uniform"] = "Collapsed: the teacher gives every image the same, uniform answer. " + (
                "The learning rate is probably too high: lower lr, or make warmup_epochs longer."
                if sharp
                else "It is not sharp enough: lower teacher_temperature, which must stay below student_temperature; a "
                "smaller lr may help."
            )
        elif information < SAME_ANSWER * could_tell or information + entropy < FEW * could_tell:
            wrong["constant"] = (
                "Collapsed: the teacher prefers the same few prototypes for all images. They are not balanced: use "
                "centring ema or sinkhorn, or a lower centre_momentum; a smaller lr may help."
            )
        if record["embedding_spread"] < SPREAD or record.get("loss_koleo", 0) > -GLOBALS * math.log(TOO_NEAR):
            wrong["spread"] = (
                "The CLS tokens of all images point the same way. If it stays so: a smaller lr, a longer warm-up, or "
                "a koleo_weight of 0.1."
            )
        return wrong

    def _lost(self, record: dict) -> dict[str, str]:
        """The terms of the loss that tell of a student that knows nothing, or less than that, by name."""
        config, wrong = self.config, {}
        uniform = math.log(config.prototypes)
        # A head that knows nothing gives cosines of random directions, whose variance adds half of itself.
        temperature = config.student_temperature
        guess = uniform + min(0.5 / config.head_bottleneck / temperature**2, 2 / temperature)
        # IBOTPatchLoss divides by all crops, masked or not.
        for name, called, most in (("dino", "DINO", guess), ("ibot", "iBOT", config.mask_probability * guess)):
            if getattr(config, f"{name}_weight") and record.get(f"loss_{name}", 0) > WORSE_THAN_GUESSING * most:
                wrong[name] = (
                    f"Diverging: the {called} loss is above {most:.2f}, that of a student that knows nothing. The "
                    "learning rate is probably too high: lower lr, or make warmup_epochs longer."
                )
        warm = record["step"] > self.steps * config.resolved().warmup_epochs / config.epochs
        near = abs(record["loss_dino"] - uniform) < KNOWS_NOTHING * uniform
        if config.centring == "sinkhorn" and config.dino_weight and warm and near:
            wrong["nothing"] = (
                f"The DINO loss stays at {uniform:.2f}, that of a student that gives every image the same answer. The "
                "learning rate is probably too high: lower lr, or make warmup_epochs longer."
            )
        return wrong
