"""The wall in a life that never comes to train; that it trains is shown in tests/runs."""

import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.tiny import make_recipe, make_record, make_run
from training import manifest
from training.cluster import make_cluster
from training.layout import BillLine, RunPaths, Status
from training.life import Life
from training.machine import Machine
from training.meter import Limits
from training.processes import StopFlag
from training.storage_folder import FolderStorage
from training.sync import Sync

RECORD = make_record(make_recipe())
DOLLAR_A_SECOND = Decimal(3600)
ONE_NODE = make_cluster(node_rank=0, node_ips="", port=0, node_count=1, ranks=1)


class SlowStorage(FolderStorage):
    """No download ends until `release` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)
        self.release = threading.Event()

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        self.release.wait(60)
        super().download(key, path, sha256=sha256)


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = signal.getsignal(signal.SIGTERM)
    yield StopFlag()
    signal.signal(signal.SIGTERM, before)


def make_life(
    root: Path, store: FolderStorage, stop: StopFlag, *, budget: str, previous: Status | None = None
) -> Life:
    make_run(root, RECORD)
    limits = Limits(budget_usd=Decimal(budget), max_hours=None, price_per_hour=DOLLAR_A_SECOND)
    machine = Machine(
        cluster=ONE_NODE,
        since=datetime.now(UTC),
        setup=(("booting", 30.0), ("installing", 60.0)),
        teardown_s=20.0,
    )
    return Life(RECORD, root, store, limits, previous, stop, machine)


def test_a_checkpoint_that_takes_long_to_come_is_waited_for_inside_the_budget(
    tmp_path: Path, stop: StopFlag
) -> None:
    store = SlowStorage(tmp_path / "store")
    folder = RunPaths(tmp_path / "earlier", RECORD.run_id).checkpoint(4)
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(b"weights")
    manifest.commit(folder, step=4, tokens=4)
    earlier = RunPaths(tmp_path / "earlier", RECORD.run_id)
    Sync(store, earlier, RECORD.run_id, keep=1, every_s=60).send_checkpoints()
    life = make_life(tmp_path / "now", store, stop, budget="117")
    try:
        outcome = life.run()
    finally:
        store.release.set()
    assert (outcome.state, outcome.reason) == ("stopped", "budget")
    assert 111 < life.journal.meter.spent_usd <= 117


def test_a_machine_that_took_all_there_was_to_come_goes_at_once(
    tmp_path: Path, stop: StopFlag
) -> None:
    store = FolderStorage(str(tmp_path / "store"), tmp_path / "store")
    life = make_life(tmp_path, store, stop, budget="114")
    outcome = life.run()
    assert (outcome.state, outcome.reason) == ("stopped", "budget")
    assert 110 < life.journal.meter.spent_usd <= 114


def test_a_life_is_billed_for_one_before_it_whose_machine_was_lost(
    tmp_path: Path, stop: StopFlag
) -> None:
    store = FolderStorage(str(tmp_path / "store"), tmp_path / "store")
    line = BillLine(life=1, phase="training", seconds=50.0, price_per_hour=DOLLAR_A_SECOND)
    previous = Status(
        run_id=RECORD.run_id, state="training", phase="training", life=1, step=2, steps=6,
        tokens=128, updated_at=RECORD.created_at, bill=(line,),
    )  # fmt: skip
    life = make_life(tmp_path, store, stop, budget="1000", previous=previous)
    bill = [(line.life, line.phase, line.seconds) for line in life.journal.meter.bill]
    assert bill == [
        (1, "training", 50.0),
        (1, "lost", 21.0),
        (2, "booting", 30.0),
        (2, "installing", 60.0),
    ]
