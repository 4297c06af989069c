"""Learning rate as a pure function of the step, and the step at which a run is over."""

import math

from training.config import TrainConfig


def last_step(train: TrainConfig, cooldown_from: int | None = None) -> int:
    """How many steps there are, where a target loss was reached after `cooldown_from` of them.

    Under `wsd` the cool-down begins there, as long as it is planned and never beyond the recipe's
    steps: a target that is reached within the planned one changes nothing. `cosine` has none, and
    stops at once.
    """
    if cooldown_from is None:
        return train.steps
    return min(train.steps, cooldown_from + train.cooldown_steps)


def lr_factor(train: TrainConfig, step: int, cooldown_from: int | None = None) -> float:
    """The share of the peak rate at which the update after `step` finished steps is made.

    `cosine` is GPT-2's reference (llm.c, nanoGPT): linear warm-up, then half a cosine down to
    `min_lr`. `wsd` holds the peak and falls linearly over the last `cooldown_steps`, as
    `last_step` counts them: a run that stops early has wasted no tail (Hu et al. 2024, MiniCPM,
    section 4; Hägele et al. 2024).
    """
    floor = train.min_lr / train.max_lr
    if train.schedule == "cosine":
        if step < train.warmup_steps:
            return (step + 1) / train.warmup_steps
        progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    # A target may be reached before the peak is: the fall then begins at the rate that there was.
    held = min(step, train.steps if cooldown_from is None else cooldown_from)
    peak = min(1.0, (held + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    left = last_step(train, cooldown_from) - step
    if left >= train.cooldown_steps:
        return peak
    return min(peak, floor) + (peak - min(peak, floor)) * left / train.cooldown_steps


def is_due(step: int, every: int, *, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the `last`, happens now."""
    return step % every == 0 or step == last
