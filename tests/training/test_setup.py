import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from training.setup import (
    UPTIME,
    SetupFailure,
    read_setup,
    read_uptime_s,
    report_failure,
    take_failure,
)
from training.storage_folder import FolderStorage

ROOT = Path(__file__).parents[2]
BOOT = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUN = "tiny-0001"
BOOTED_S = 4.0
"""Uptime at which the first line was written."""


def after(seconds: float) -> datetime:
    return BOOT + timedelta(seconds=seconds)


@pytest.fixture
def timings(tmp_path: Path) -> Path:
    path = tmp_path / ".setup"
    marks = ((0, "booting"), (40, "checking_hardware"), (42.5, "installing"), (90, "starting"))
    path.write_text("".join(f"{BOOTED_S + s:.2f} {phase}\n" for s, phase in marks))
    return path


def test_each_phase_lasts_until_the_next_and_the_last_until_now(timings: Path) -> None:
    assert read_setup(timings, age_s=151, now_s=BOOTED_S + 91) == [
        ("booting", 40),
        ("checking_hardware", 2.5),
        ("installing", 47.5),
        ("starting", 1),
    ]


def test_a_machine_that_was_up_before_the_run_did_not_boot_for_it(timings: Path) -> None:
    phases = dict(read_setup(timings, age_s=81, now_s=BOOTED_S + 91))
    assert "booting" not in phases
    assert phases["checking_hardware"] == 2.5


def test_no_second_is_billed_to_two_lives(timings: Path) -> None:
    """The second begins where the first had its last word, and not where its own process did."""
    assert read_setup(timings, age_s=7, now_s=BOOTED_S + 307) == [("starting", 7)]


def test_a_clock_that_was_set_right_as_the_machine_booted_bills_no_second_more(
    timings: Path,
) -> None:
    """By the clock of the day the run was asked for two days ago, or in an hour."""
    whole = read_setup(timings, age_s=2 * 86400, now_s=BOOTED_S + 91)
    assert sum(seconds for _, seconds in whole) == 91
    assert read_setup(timings, age_s=-3600, now_s=BOOTED_S + 91) == []


def test_the_bootstrap_and_the_supervisor_read_the_same_clock() -> None:
    before = time.monotonic()
    first = read_uptime_s()
    time.sleep(0.1)
    passed_s = read_uptime_s() - first
    assert 0.08 <= passed_s <= time.monotonic() - before + 0.02
    assert f"{UPTIME} >>" in (ROOT / "training" / "bootstrap.sh").read_text()


@pytest.mark.parametrize("content", ["", "\n", "yesterday booting\n"])
def test_what_cannot_be_read_is_no_time(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".setup"
    path.write_text(content)
    assert read_setup(path, age_s=60, now_s=60) == []
    assert read_setup(tmp_path / "missing", age_s=60, now_s=60) == []


def test_what_failed_on_another_node_is_heard_once_and_only_if_it_is_new(tmp_path: Path) -> None:
    store = FolderStorage(str(tmp_path), tmp_path / "store")
    failure = SetupFailure(node_rank=3, message="no driver", hint="take another", at=after(50))
    report_failure(store, RUN, failure, tmp_path / "no.log")
    assert take_failure(store, RUN, since=BOOT) == failure
    assert take_failure(store, RUN, since=BOOT) is None
    report_failure(store, RUN, failure, tmp_path / "no.log")
    assert take_failure(store, RUN, since=after(60)) is None
