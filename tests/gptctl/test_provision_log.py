import pytest

from gptctl import provision_log
from gptctl.provision_log import ProvisionLog
from tests.gptctl.run_folder import RunFolder
from training.errors import StorageUnavailableError
from training.layout import run_key

KEY = run_key("small-3f9a", "logs", "provision.log")


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as the log sees them: set by the test."""
    now = [1000.0]
    monkeypatch.setattr(provision_log.time, "monotonic", lambda: now[0])
    return now


def lines(store):
    return [line.partition(" ")[2] for line in store.read(KEY).decode().splitlines()]


def is_stored(store):
    return any(found.key == KEY for found in store.list(KEY))


def test_lines_are_shown_at_once_and_stored_every_few_seconds(run, clock):
    shown = []
    log = ProvisionLog(run.store, run.run_id, shown.append)

    log("asking lambda")
    log("no capacity")
    assert shown == ["asking lambda", "no capacity"]
    assert lines(run.store) == ["asking lambda"]

    clock[0] += provision_log.SEND_EVERY_S
    log("asking runpod")
    assert lines(run.store) == ["asking lambda", "no capacity", "asking runpod"]


def test_what_is_left_is_sent_at_the_end(run, clock):
    log = ProvisionLog(run.store, run.run_id, lambda line: None)
    log("one")
    log("two")
    log.close()

    assert lines(run.store) == ["one", "two"]


def test_later_launch_of_the_run_goes_on_in_the_same_log(run, clock):
    for line in ("first life", "second life"):
        log = ProvisionLog(run.store, run.run_id, lambda line: None)
        log(line)
        log.close()

    assert lines(run.store) == ["first life", "second life"]


def test_line_can_be_kept_without_being_shown(run):
    shown = []
    log = ProvisionLog(run.store, run.run_id, shown.append)
    log.keep("error: no room")
    log.close()

    assert shown == []
    assert lines(run.store) == ["error: no room"]


def test_launch_of_which_nothing_was_said_leaves_no_log(run):
    ProvisionLog(run.store, run.run_id, lambda line: None).close()

    assert not is_stored(run.store)


def test_store_out_of_reach_does_not_keep_a_launch_from_going_on(run, clock, monkeypatch):
    shown = []
    log = ProvisionLog(run.store, run.run_id, shown.append)

    def fail(*_, **__):
        raise StorageUnavailableError("down")

    with monkeypatch.context() as broken:
        broken.setattr(run.store, "write", fail)
        broken.setattr(run.store, "read", fail)
        log("one")
        log.close()
    clock[0] += provision_log.SEND_EVERY_S
    log("two")

    assert shown == ["one", "two"]
    assert lines(run.store) == ["one", "two"]
