import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from training.errors import StorageUnavailableError
from training.events import append_event
from training.head_news import HeadWatch, make_news, read_news
from training.layout import State, Status, encode, run_key
from training.storage_folder import FolderStorage

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def make_status(state: State = "training", *, after_s: float = 0) -> Status:
    return Status(
        run_id="r",
        state=state,
        phase=state,
        life=2,
        step=0,
        steps=1,
        tokens=0,
        updated_at=NOW + timedelta(seconds=after_s),
    )


def life(number: int) -> dict[str, Any]:
    return {"event": "life_started", "life": number}


def phase(name: str) -> dict[str, Any]:
    return {"event": "phase_started", "phase": name}


STARTED, RESUMED, STALLED, DIED = (
    {"event": f"training_{verb}", "step": 1} for verb in ("started", "resumed", "stalled", "died")
)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], (2, 0, False, True)),
        ([life(2), phase("checking")], (2, 0, False, True)),
        ([life(2), phase("checking"), phase("preparing")], (2, 0, True, True)),
        ([life(2), phase("preparing"), STARTED], (2, 0, True, False)),
        ([life(2), phase("preparing"), STARTED, DIED], (2, 1, True, True)),
        ([life(2), phase("preparing"), STARTED, DIED, RESUMED], (2, 1, True, False)),
        # What an earlier life did is over.
        ([life(1), phase("preparing"), STARTED, DIED, life(2)], (2, 0, False, True)),
    ],
)
def test_news_are_of_the_newest_life(
    events: list[dict[str, Any]], expected: tuple[int, int, bool, bool]
) -> None:
    news = make_news(make_status(), events)
    assert (news.life, news.deaths, news.is_checked, news.is_open) == expected


@pytest.mark.parametrize(
    ("events", "is_stalled"),
    [([STARTED], False), ([STARTED, STALLED], True), ([STARTED, STALLED, DIED], False)],
)
def test_training_hangs_from_when_the_head_says_so_until_it_is_killed(
    events: list[dict[str, Any]], is_stalled: bool
) -> None:
    assert make_news(make_status(), [life(2), *events]).is_stalled == is_stalled
    assert not make_news(make_status(), [life(1), *events, life(2)]).is_stalled


def test_a_run_that_is_over_is_told(tmp_path: Path) -> None:
    store = FolderStorage(str(tmp_path), tmp_path)
    assert read_news(store, "r") is None
    store.write(run_key("r", "status.json"), encode(make_status("stopped")))
    append_event(tmp_path / "runs" / "r" / "events.jsonl", **life(3))
    news = read_news(store, "r")
    assert news is not None
    assert (news.is_over, news.life) == (True, 3)


def wait(is_there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_head_lives_when_its_heartbeat_moves(tmp_path: Path) -> None:
    store = FolderStorage(str(tmp_path), tmp_path)
    key = run_key("r", "status.json")
    store.write(key, encode(make_status()))  # of a machine that is lost, perhaps
    watch = HeadWatch(store, "r", every_s=0.02)
    watch.start()
    try:
        wait(lambda: watch.news)
        assert watch.news is not None
        assert not watch.is_alive(watch.news)
        store.write(key, encode(make_status("pending", after_s=1)))
        wait(lambda: watch.news and watch.news.state == "pending")
        assert not watch.is_alive(watch.news)
        store.write(key, encode(make_status("preparing", after_s=2)))
        wait(lambda: watch.news and watch.news.state == "preparing")
        assert watch.is_alive(watch.news)
        assert watch.silence_s < 5
    finally:
        watch.close()


def test_a_store_out_of_reach_is_asked_again_and_told(tmp_path: Path) -> None:
    class Flaky(FolderStorage):
        is_down = True

        def read(self, key: str) -> bytes:
            if self.is_down:
                raise StorageUnavailableError("the network is down")
            return super().read(key)

    store = Flaky(str(tmp_path), tmp_path)
    store.write(run_key("r", "status.json"), encode(make_status()))
    watch = HeadWatch(store, "r", every_s=0.02)
    watch.start()
    try:
        wait(lambda: watch.trouble == "the network is down")
        store.is_down = False
        wait(lambda: watch.news)
        assert watch.trouble is None
    finally:
        watch.close()
