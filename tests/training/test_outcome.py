import pytest

from training import errors
from training.outcome import REASONS, judge_exit


def test_exit_at_the_last_step_is_success() -> None:
    outcome = judge_exit(0, is_complete=True, stop_reason=None, error=None)
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("succeeded", "completed")


def test_a_run_that_completes_as_it_is_told_to_stop_has_succeeded() -> None:
    outcome = judge_exit(0, is_complete=True, stop_reason="budget", error=None)
    assert outcome is not None
    assert outcome.state == "succeeded"


@pytest.mark.parametrize("reason", ["user", "budget", "deadline"])
@pytest.mark.parametrize("exit_code", [0, 1, -9])
def test_what_was_asked_to_stop_is_stopped_however_it_left(reason: str, exit_code: int) -> None:
    outcome = judge_exit(exit_code, is_complete=False, stop_reason=reason, error=None)
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("stopped", reason)


def test_a_crash_without_a_named_error_is_worth_another_try() -> None:
    assert judge_exit(-9, is_complete=False, stop_reason=None, error=None) is None


def test_a_named_error_fails_the_run_with_its_message() -> None:
    error = {"kind": "NotFiniteError", "message": "step 7: the loss is nan", "hint": "lower"}
    outcome = judge_exit(1, is_complete=False, stop_reason=None, error=error)
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", "not_finite")
    assert (outcome.message, outcome.hint) == ("step 7: the loss is nan", "lower")


def test_every_error_of_the_node_has_a_reason() -> None:
    names = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert names - {"ObjectExistsError"} == set(REASONS)
