"""Learning rate as a pure function of the step."""

import math

from training.config import TrainConfig


def lr_factor(train: TrainConfig, step: int) -> float:
    """The share of the peak rate at which the update after `step` finished steps is made.

    `cosine` is GPT-2's reference (llm.c, nanoGPT): linear warm-up, then half a cosine down to
    `min_lr`. `wsd` holds the peak and falls linearly over the last `cooldown_steps`: a run
    that stops early has wasted no tail (Hu et al. 2024, MiniCPM, section 4).
    """
    floor = train.min_lr / train.max_lr
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "cosine":
        progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    left = train.steps - step
    if left >= train.cooldown_steps:
        return 1.0
    return floor + (1 - floor) * left / train.cooldown_steps


def is_due(step: int, every: int, *, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the `last`, happens now."""
    return step % every == 0 or step == last
