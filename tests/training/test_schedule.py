import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainConfig
from training.schedule import is_due, last_step, lr_factor


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


@st.composite
def cut_schedules(draw: st.DrawFn) -> tuple[TrainConfig, int]:
    """A `wsd` of any shape, and the step at which a target is reached."""
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    train = make_train(
        steps=steps,
        schedule="wsd",
        warmup_steps=warmup,
        cooldown_steps=draw(st.integers(0, steps - warmup)),
        min_lr=draw(st.sampled_from([0.0, 6e-5, 6e-4])),
    )
    return train, draw(st.integers(0, steps))


@given(cut_schedules())
def test_target_starts_a_cool_down_of_the_planned_length_within_the_planned_steps(
    case: tuple[TrainConfig, int],
) -> None:
    train, reached = case
    last = last_step(train, reached)
    assert reached <= last <= train.steps
    assert last == train.steps or last - reached == train.cooldown_steps


@given(cut_schedules())
def test_until_the_target_the_rate_is_that_of_the_whole_schedule(
    case: tuple[TrainConfig, int],
) -> None:
    train, reached = case
    for step in range(reached):
        assert lr_factor(train, step, reached) == lr_factor(train, step)


@given(cut_schedules())
def test_from_the_target_on_the_rate_falls_and_comes_to_the_minimum_at_the_last_step(
    case: tuple[TrainConfig, int],
) -> None:
    train, reached = case
    last = last_step(train, reached)
    factors = [lr_factor(train, step, reached) for step in range(reached, last)]
    assert factors == sorted(factors, reverse=True)
    assert all(0 < factor <= 1 for factor in factors)
    falls = [before - after for before, after in pairwise(factors)]
    if factors and last < train.steps:  # it began at the target, and goes down in equal parts
        assert falls == pytest.approx(falls[:1] * len(falls))
        floor = min(factors[0], train.min_lr / train.max_lr)
        assert factors[-1] == pytest.approx(floor + (factors[0] - floor) / train.cooldown_steps)


def test_target_within_the_planned_cool_down_changes_nothing() -> None:
    train = make_train(schedule="wsd", cooldown_steps=20)
    assert last_step(train, 90) == last_step(train) == 100
    for step in range(90, 100):
        assert lr_factor(train, step, 90) == lr_factor(train, step)


def test_target_before_the_peak_cools_down_from_the_rate_that_there_was() -> None:
    train = make_train(schedule="wsd", warmup_steps=40, cooldown_steps=20)
    factors = [lr_factor(train, step, 9) for step in (9, 19, 28)]
    assert factors == pytest.approx([10 / 40, 10 / 40 / 2, 10 / 40 / 20])


def test_cosine_has_no_cool_down_and_stops_at_its_target() -> None:
    train = make_train()
    assert (last_step(train), last_step(train, 37)) == (100, 37)
    assert lr_factor(train, 36, 37) == lr_factor(train, 36)
