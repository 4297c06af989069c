import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.hub_server import Fault, HubServer, running_hub
from training.errors import DataError, NoSpaceError
from training.hub import HubFile, list_files
from training.hub_asking import Patience
from training.hub_fetch import fetch_ahead

REPO = "owner/shards"
SIZE_BYTES = 300_000
EAGER = Patience(first_wait_s=0.01)
HASTY = Patience(first_wait_s=0.01, refused_s=0.3)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fetched"


def contents(count: int) -> dict[str, bytes]:
    return {f"{i}/part.bin": random.Random(i).randbytes(SIZE_BYTES + i) for i in range(count)}


def publish(hub: HubServer, count: int) -> tuple[str, list[HubFile]]:
    commit = hub.commit(REPO, contents(count))
    return commit, list_files(REPO, commit, "*/part.bin")


def test_files_are_read_in_order_and_removed_behind_the_reader(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 6)
    read, most = [], 0
    for path in fetch_ahead(REPO, commit, files, folder, ahead=2):
        read.append(path.read_bytes())
        time.sleep(0.1)  # so that those ahead arrive
        most = max(most, len(list(folder.iterdir())))
    assert read == list(contents(6).values())
    assert most == 3
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("ahead", [0, 1, 9])
def test_any_number_may_be_fetched_ahead(hub: HubServer, folder: Path, ahead: int) -> None:
    commit, files = publish(hub, 3)
    paths = fetch_ahead(REPO, commit, files, folder, first=1, ahead=ahead)
    assert [path.read_bytes() for path in paths] == list(contents(3).values())[1:]
    assert not hub.requests_for("/lfs/*/0/part.bin")


def test_no_files_are_no_error(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 1)
    assert list(fetch_ahead(REPO, commit, files, folder, first=1)) == []


def test_the_first_comes_alone_and_the_next_side_by_side_while_it_is_read(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 3)
    takes_s = 1.0
    hub.inject(Fault(path="/lfs/*", times=3, bytes_per_s=SIZE_BYTES / takes_s))
    with closing(fetch_ahead(REPO, commit, files, folder, ahead=2)) as paths:
        next(paths)
        while len(hub.requests_for("/lfs/*")) < 3:
            time.sleep(0.01)  # nobody asks for the next
    first, second, third = (request.at_s for request in hub.requests_for("/lfs/*"))
    assert second - first >= takes_s
    assert third - second < takes_s


def test_a_cut_connection_goes_on_where_it_was_cut(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 1)
    hub.inject(Fault(path="/lfs/*", times=2, cut_after_bytes=100_000))
    paths = fetch_ahead(REPO, commit, files, folder, patience=EAGER)
    assert [path.read_bytes() for path in paths] == list(contents(1).values())
    assert [request.range for request in hub.requests_for("/lfs/*")] == [
        *(None, "bytes=100000-", "bytes=200000-"),
    ]


def test_a_file_that_is_sent_from_its_beginning_again_is_whole(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 1)
    hub.inject(Fault(path="/lfs/*", cut_after_bytes=100_000))
    hub.inject(Fault(path="/lfs/*", ignores_range=True))
    paths = fetch_ahead(REPO, commit, files, folder, patience=EAGER)
    assert [path.read_bytes() for path in paths] == list(contents(1).values())
    assert len(hub.requests_for("/lfs/*")) == 2


def test_patience_begins_anew_with_every_step_forward(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 1)
    hub.inject(Fault(path="/lfs/*", times=10, cut_after_bytes=30_000))
    assert len(list(fetch_ahead(REPO, commit, files, folder, patience=HASTY))) == 1
    times = [request.at_s for request in hub.requests_for("/lfs/*")]
    assert times[-1] - times[0] > HASTY.refused_s


def test_a_file_that_is_cut_again_and_again_at_its_start_is_given_up(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 1)
    hub.inject(Fault(path="/lfs/*", times=1000, cut_after_bytes=0))
    with pytest.raises(DataError, match="owner/shards could not be had"):
        list(fetch_ahead(REPO, commit, files, folder, patience=HASTY))


def test_wrong_bytes_are_fetched_again_and_never_given_to_the_reader(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 1)
    hub.inject(Fault(path="/lfs/*", times=2, wrong_bytes=True))
    (content,) = (path.read_bytes() for path in fetch_ahead(REPO, commit, files, folder))
    assert content == contents(1)["0/part.bin"]
    hub.inject(Fault(path="/lfs/*", times=3, wrong_bytes=True))
    with pytest.raises(DataError, match=r"0/part\.bin of owner/shards arrived 3 times") as caught:
        list(fetch_ahead(REPO, commit, files, folder))
    assert files[0].sha256 is not None
    assert files[0].sha256 in caught.value.message
    assert list(folder.iterdir()) == []


def test_a_file_that_is_not_there_fails_when_it_is_due(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 2)
    gone = HubFile(path="gone.bin", size_bytes=1, sha256=None)
    paths = fetch_ahead(REPO, commit, [files[0], gone, files[1]], folder)
    assert next(paths).read_bytes() == contents(1)["0/part.bin"]
    with pytest.raises(DataError, match="refused what was asked"):
        next(paths)


def test_a_rate_limit_in_the_middle_of_a_list_is_waited_for(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 3)
    hub.inject(Fault(path="*/resolve/*/1/part.bin", status=429, headers={"Retry-After": "1"}))
    paths = fetch_ahead(REPO, commit, files, folder)
    assert [path.read_bytes() for path in paths] == list(contents(3).values())
    first, second = (request.at_s for request in hub.requests_for("*/resolve/*/1/part.bin"))
    assert second - first >= 1


def test_the_next_life_uses_what_the_last_one_fetched(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 4)
    slow = Fault(path="/lfs/*/2/part.bin", bytes_per_s=SIZE_BYTES / 2)
    hub.inject(slow)
    with closing(fetch_ahead(REPO, commit, files, folder, ahead=2)) as paths:
        next(paths)
        next(paths)
        time.sleep(0.3)
    before = len(hub.requests)
    left = sorted(path.name[-8:] for path in folder.iterdir())
    assert left == ["bin.part", "part.bin", "part.bin"]

    paths = fetch_ahead(REPO, commit, files, folder, first=1)
    assert [path.read_bytes() for path in paths] == list(contents(4).values())[1:]
    again = [request for request in hub.requests[before:] if request.path.startswith("/lfs/")]
    assert {request.path.split("/")[-2] for request in again} == {"2"}
    assert all(request.range for request in again)


def test_closing_stops_a_fetch_in_the_middle_of_a_file(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 2)
    hub.inject(Fault(path="/lfs/*/1/part.bin", bytes_per_s=SIZE_BYTES / 60))
    paths = fetch_ahead(REPO, commit, files, folder)
    next(paths)
    time.sleep(0.2)
    began = time.monotonic()
    paths.close()
    assert time.monotonic() - began < 3


def test_what_an_earlier_life_left_and_nobody_will_read_is_removed(
    hub: HubServer, folder: Path
) -> None:
    commit, files = publish(hub, 2)
    with closing(fetch_ahead(REPO, commit, files, folder, ahead=0)) as paths:
        stale = next(paths)
    (folder / "of-somebody-else").touch()
    assert stale.exists()
    list(fetch_ahead(REPO, commit, files, folder, first=1))
    assert [path.name for path in folder.iterdir()] == ["of-somebody-else"]


def test_a_damaged_file_of_an_earlier_life_is_fetched_again(hub: HubServer, folder: Path) -> None:
    commit, files = publish(hub, 1)
    for damage in (b"", b"short", bytes(SIZE_BYTES), bytes(SIZE_BYTES + 1)):
        with closing(fetch_ahead(REPO, commit, files, folder)) as paths:
            path = next(paths)
        path.write_bytes(damage)
        paths = fetch_ahead(REPO, commit, files, folder)
        assert [path.read_bytes() for path in paths] == list(contents(1).values())


def test_a_full_disk_is_told_as_one(hub: HubServer, small_disk: Path) -> None:
    commit = hub.commit(REPO, {"0/part.bin": bytes(2 << 20)})
    files = list_files(REPO, commit, "*/part.bin")
    with pytest.raises(NoSpaceError, match="the disk is full"):
        list(fetch_ahead(REPO, commit, files, small_disk))
