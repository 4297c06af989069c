import pytest

from training.restarts import Death, give_up


def is_over(*deaths: Death, max_restarts: int = 3) -> bool:
    return give_up(deaths, max_restarts=max_restarts, run_id="r") is not None


def short_of_memory(micro_batch_size: int | None, *, step: int = 5) -> Death:
    return Death(step=step, cause="out_of_memory", micro_batch_size=micro_batch_size)


def stalled(step: int) -> Death:
    return Death(step=step, cause="stalled")


def test_deaths_at_different_steps_are_tried_again_as_often_as_allowed() -> None:
    deaths = [Death(step=step) for step in (5, 9, 12, 20)]
    assert not is_over(*deaths[:3])
    assert is_over(*deaths)
    assert is_over(deaths[0], max_restarts=0)


@pytest.mark.parametrize("last", [Death(step=5), stalled(5)])
def test_a_second_death_at_the_same_step_is_the_last_whatever_they_died_of(last: Death) -> None:
    assert is_over(stalled(5), Death(step=9), last)


def test_want_of_memory_is_no_death_while_the_micro_batch_still_shrinks() -> None:
    shrinking = [short_of_memory(size) for size in (64, 32, 16, 8, 4, 2)]
    for count in range(1, 7):
        assert not is_over(*shrinking[:count], max_restarts=1)
    assert not is_over(*shrinking, Death(step=9), max_restarts=1)
    # One that did not get smaller is as any other.
    assert not is_over(*shrinking, short_of_memory(2), max_restarts=1)
    assert is_over(*shrinking, short_of_memory(2), short_of_memory(2))
    assert is_over(*shrinking, short_of_memory(2), Death(step=9), max_restarts=1)


def test_want_of_memory_without_a_word_of_the_micro_batch_is_as_any_death() -> None:
    assert not is_over(short_of_memory(None))
    assert is_over(short_of_memory(None), short_of_memory(None))


@pytest.mark.parametrize(
    ("last", "reason", "words"),
    [
        (Death(step=5), "crashed", "--stage train"),
        (stalled(5), "stalled", "--stage stacks"),
        (short_of_memory(8), "out_of_memory", "train.micro_batch_size"),
    ],
)
def test_the_end_is_named_for_the_last_death_with_what_to_do(
    last: Death, reason: str, words: str
) -> None:
    before = short_of_memory(8) if reason == "out_of_memory" else Death(step=3)
    outcome = give_up([Death(step=1), before, last], max_restarts=1, run_id="r")
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", reason)
    assert "at step 5, once more (2 restarts)" in str(outcome.message)
    assert words in str(outcome.hint)
