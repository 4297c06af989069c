from datetime import timedelta

import pytest

from gptctl.errors import NotFoundError
from gptctl.monitor import (
    await_end,
    exit_code_of,
    follow,
    logged_stages,
    read_log,
    watch,
)
from tests.gptctl.run_folder import NOW, FakeBackend, RunFolder
from training.errors import StorageUnavailableError


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def look_at(run, backend=None):
    return watch(
        run.run_id,
        store=run.store,
        backend=backend or FakeBackend("running"),
        clock=lambda: NOW + timedelta(seconds=1),
    )


def script(*actions):
    """A way to wait during which the next thing happens."""
    steps = iter(actions)
    return lambda: next(steps)()


def test_following_ends_with_the_run(run):
    backend = FakeBackend("running")

    def end():
        run.write_status(state="succeeded", step=100)
        backend.now = "gone"

    views = list(follow(look_at(run, backend), wait=script(lambda: run.write_status(step=60), end)))

    assert [(v.state, v.step) for v in views] == [
        ("training", 50),
        ("training", 60),
        ("succeeded", 100),
    ]


def test_following_waits_for_the_supervisor_to_let_go(run):
    backend = FakeBackend("running")
    run.write_status(state="stopped", reason="user")

    views = list(follow(look_at(run, backend), wait=lambda: backend.stop(run.run_id, tell=print)))

    assert [v.backend for v in views] == ["running", "gone"]


def test_following_ends_when_the_supervisor_dies(run):
    backend = FakeBackend("running")

    *_, last = follow(look_at(run, backend), wait=lambda: backend.stop(run.run_id, tell=print))

    assert (last.state, last.reason) == ("failed", "killed")


def test_store_out_of_reach_is_waited_out_once_it_was_reached(run):
    backend = FakeBackend("running")
    look = look_at(run, backend)
    answers = iter([look, unavailable, unavailable, look])

    views = follow(lambda: next(answers)(), wait=lambda: None)

    assert [next(views).step, next(views).step] == [50, 50]


def test_store_never_reached_is_an_error():
    with pytest.raises(StorageUnavailableError):
        next(follow(unavailable, wait=lambda: None))


def unavailable():
    raise StorageUnavailableError("down")


def test_unknown_run_is_not_found_before_anything_is_followed(run):
    with pytest.raises(NotFoundError):
        watch("nope", store=run.store, backend=FakeBackend(), clock=lambda: NOW)


def test_missing_log_names_the_stages_that_have_one(run):
    run.write_log("train", "x")
    run.write_log("prepare", "y")

    assert read_log(run.store, run.run_id, "train") == b"x"
    assert logged_stages(run.store, run.run_id) == ["prepare", "train"]
    with pytest.raises(NotFoundError, match="'sample'") as error:
        read_log(run.store, run.run_id, "sample")
    assert "prepare, train" in error.value.hint


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        ("succeeded", "completed", 0),
        ("stopped", "target", 0),
        ("stopped", "budget", 5),
        ("stopped", "deadline", 5),
        ("stopped", "user", 9),
        ("failed", "stalled", 4),
    ],
)
def test_exit_code_tells_how_the_run_ended(run, state, reason, code):
    run.write_status(state=state, reason=reason)

    assert exit_code_of(look_at(run)()) == code


def test_waiting_for_an_end_gives_up_when_it_is_late():
    assert await_end(iter([1, 2, 3]), lambda: False) == 3
    assert await_end(iter([1, 2, 3]), lambda: True) == 2
