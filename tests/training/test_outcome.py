import errno

import pytest

from training import errors
from training.cluster import NODES_MISSING
from training.outcome import REASONS, Outcome, cut_off, judge_check, judge_exit, pass_on


def test_a_target_that_is_reached_is_a_success_before_the_last_step() -> None:
    options = {"stop_reason": None, "error": None, "run_id": "tiny-1"}
    early = judge_exit(0, is_complete=False, is_at_target=True, **options)
    assert early == Outcome(state="succeeded", reason="target")
    late = judge_exit(0, is_complete=True, is_at_target=True, **options)
    assert late == Outcome(state="succeeded", reason="completed")


def test_exit_at_the_last_step_is_success() -> None:
    outcome = judge_exit(0, is_complete=True, stop_reason=None, error=None, run_id="tiny-1")
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("succeeded", "completed")


def test_a_run_that_completes_as_it_is_told_to_stop_has_succeeded() -> None:
    outcome = judge_exit(0, is_complete=True, stop_reason="budget", error=None, run_id="tiny-1")
    assert outcome is not None
    assert outcome.state == "succeeded"


@pytest.mark.parametrize("reason", ["user", "budget", "deadline"])
@pytest.mark.parametrize("exit_code", [0, 1, -9])
def test_what_was_asked_to_stop_is_stopped_however_it_left(reason: str, exit_code: int) -> None:
    outcome = judge_exit(
        exit_code, is_complete=False, stop_reason=reason, error=None, run_id="tiny-1"
    )
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("stopped", reason)


def test_a_crash_without_a_named_error_is_worth_another_try() -> None:
    assert judge_exit(-9, is_complete=False, stop_reason=None, error=None, run_id="tiny-1") is None


def test_a_named_error_fails_the_run_with_its_message() -> None:
    error = {"kind": "NotFiniteError", "message": "step 7: the loss is nan", "hint": "lower"}
    outcome = judge_exit(1, is_complete=False, stop_reason=None, error=error, run_id="tiny-1")
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", "not_finite")
    assert (outcome.message, outcome.hint) == ("step 7: the loss is nan", "lower")


def test_an_error_beside_a_training_that_reached_its_end_is_no_failure() -> None:
    error = {"kind": "NoSpaceError", "message": "full", "hint": "free some"}
    outcome = judge_exit(0, is_complete=True, stop_reason=None, error=error, run_id="tiny-1")
    assert outcome is not None
    assert outcome.state == "succeeded"


def test_a_preparation_that_died_without_a_word_is_named_with_its_log() -> None:
    outcome = judge_exit(0, is_complete=False, stop_reason="data", error=None, run_id="tiny-1")
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", "data")
    assert "gptctl logs tiny-1 --stage prepare" in str(outcome.hint)


def test_a_full_disk_is_told_from_other_things_that_a_machine_refuses() -> None:
    assert Outcome.refused(OSError(errno.ENOSPC, "full")).reason == "no_space"
    assert Outcome.refused(OSError(errno.ENOMEM, "no memory")).reason == "node"


def test_every_error_of_the_node_has_a_reason() -> None:
    names = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert names - {"ObjectExistsError"} == set(REASONS)


def test_an_unfit_gpu_is_named_as_the_check_named_it() -> None:
    error = {"kind": "TrainingError", "message": "GPU 3 hangs", "hint": "another machine"}
    assert judge_check(1, error, "tiny-1").message == "GPU 3 hangs"
    for code in (1, -9, NODES_MISSING):
        silent = judge_check(code, None, "tiny-1")
        assert (silent.state, silent.reason) == ("failed", "node")
        assert "--stage check" in str(silent.hint)
    assert "did not find each other" in str(judge_check(NODES_MISSING, None, "tiny-1").message)


def test_a_run_that_recovers_is_not_over_because_its_machine_is_taken_down() -> None:
    told = Outcome.stopped("user")
    assert pass_on(told, recovers=True).state == "preempted"
    assert pass_on(told, recovers=False) == told


@pytest.mark.parametrize("reason", ["budget", "deadline"])
def test_limits_and_faults_end_a_run_that_recovers_too(reason: str) -> None:
    assert pass_on(Outcome.stopped(reason), recovers=True) == Outcome.stopped(reason)
    failed = Outcome.failed("setup", "no driver", "another machine")
    assert pass_on(failed, recovers=True) == failed


@pytest.mark.parametrize(("saved", "words"), [(40, "is saved is 40"), (0, "none is saved")])
def test_training_that_could_not_save_in_time_says_what_there_is(saved: int, words: str) -> None:
    outcome = cut_off(Outcome.stopped("budget"), step=57, saved=saved)
    assert (outcome.state, outcome.reason) == ("stopped", "budget")
    assert "step 57 could not be saved" in str(outcome.message)
    assert words in str(outcome.message)
