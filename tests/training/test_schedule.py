import math
from typing import Any

import pytest

from training.config import TrainConfig
from training.schedule import is_due, lr_factor


def make_train(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 100, "batch_tokens": 64, "micro_batch_size": 1, "max_lr": 6e-4, "warmup_steps": 10
    }  # fmt: skip
    return TrainConfig(**values | changes)


def test_warm_up_is_linear_and_never_zero() -> None:
    train = make_train()
    assert [lr_factor(train, step) for step in range(10)] == [(s + 1) / 10 for s in range(10)]


def test_cosine_equals_the_reference_formula() -> None:
    # build-nanogpt's get_lr, written out: min + ½(1 + cos πr)(max - min).
    train = make_train(min_lr=6e-5)
    for step in (10, 37, 99):
        ratio = (step - 10) / 90
        expected = 6e-5 + 0.5 * (1 + math.cos(math.pi * ratio)) * (6e-4 - 6e-5)
        assert 6e-4 * lr_factor(train, step) == pytest.approx(expected)


def test_wsd_holds_the_peak_then_falls_linearly_to_the_minimum() -> None:
    train = make_train(schedule="wsd", cooldown_steps=20)
    assert lr_factor(train, 10) == lr_factor(train, 80) == 1.0
    assert lr_factor(train, 90) == pytest.approx(0.5)
    assert lr_factor(train, 99) == pytest.approx(0.05)


def test_last_step_is_due_whatever_the_interval() -> None:
    assert [step for step in range(11) if is_due(step, 4, last=10)] == [0, 4, 8, 10]
