from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from training.setup import SetupFailure, read_setup, report_failure, take_failure
from training.storage_folder import FolderStorage

BOOT = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUN = "tiny-0001"


def after(seconds: float) -> datetime:
    return BOOT + timedelta(seconds=seconds)


@pytest.fixture
def timings(tmp_path: Path) -> Path:
    path = tmp_path / ".setup"
    marks = ((0, "booting"), (40, "checking_hardware"), (42.5, "installing"), (90, "starting"))
    path.write_text("".join(f"{after(s).timestamp():.3f} {phase}\n" for s, phase in marks))
    return path


def test_each_phase_lasts_until_the_next_and_the_last_until_now(timings: Path) -> None:
    assert read_setup(timings, since=after(-60), now=after(91)) == [
        ("booting", 40),
        ("checking_hardware", 2.5),
        ("installing", 47.5),
        ("starting", 1),
    ]


def test_a_machine_that_was_up_before_the_run_did_not_boot_for_it(timings: Path) -> None:
    phases = dict(read_setup(timings, since=after(10), now=after(91)))
    assert "booting" not in phases
    assert phases["checking_hardware"] == 2.5


def test_no_second_is_billed_to_two_lives(timings: Path) -> None:
    """The second begins where the first had its last word, and not where its own process did."""
    assert read_setup(timings, since=after(300), now=after(307)) == [("starting", 7)]


@pytest.mark.parametrize("content", ["", "\n", "yesterday booting\n"])
def test_what_cannot_be_read_is_no_time(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".setup"
    path.write_text(content)
    assert read_setup(path, since=BOOT, now=after(60)) == []
    assert read_setup(tmp_path / "missing", since=BOOT, now=after(60)) == []


def test_what_failed_on_another_node_is_heard_once_and_only_if_it_is_new(tmp_path: Path) -> None:
    store = FolderStorage(str(tmp_path), tmp_path / "store")
    failure = SetupFailure(node_rank=3, message="no driver", hint="take another", at=after(50))
    report_failure(store, RUN, failure, tmp_path / "no.log")
    assert take_failure(store, RUN, since=BOOT) == failure
    assert take_failure(store, RUN, since=BOOT) is None
    report_failure(store, RUN, failure, tmp_path / "no.log")
    assert take_failure(store, RUN, since=after(60)) is None
