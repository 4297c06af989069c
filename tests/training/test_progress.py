import os
from pathlib import Path

import pytest

from training.events import append_event, append_line
from training.layout import RunPaths, SlowRank
from training.progress import Heartbeat, Progress


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path, "tiny-0001")
    paths.folder.mkdir(parents=True)
    return paths


def write_step(paths: RunPaths, step: int, *, tokens_per_sec: float = 32.0) -> None:
    line = {"step": step, "tokens": 64 * step, "loss": 3.0, "mfu": None}
    append_line(paths.metrics, {**line, "tokens_per_sec": tokens_per_sec})


def write_evaluation(paths: RunPaths, step: int, val_loss: float, *, seconds: float = 1.0) -> None:
    line = {"step": step, "tokens": 64 * step, "val_loss": val_loss, "seconds": seconds}
    append_line(paths.metrics, line)


def test_a_validation_loss_of_zero_stays_the_best(paths: RunPaths) -> None:
    progress = Progress(paths)
    for step, val_loss in enumerate([0.5, 0.0, 0.25]):
        write_evaluation(paths, step, val_loss)
    progress.read()
    assert (progress.best_val_loss, progress.val_loss) == (0.0, 0.25)


def test_a_restart_tells_what_was_measured_before_it_again(paths: RunPaths) -> None:
    write_step(paths, 1)
    write_evaluation(paths, 1, 2.0)
    progress = Progress(paths)
    progress.restart()
    progress.read()
    told = progress.step, progress.best_val_loss, progress.tokens_per_sec
    assert told == (1, 2.0, 32.0)
    assert not progress.is_training
    append_event(paths.events, "training_resumed", step=1)
    progress.read()
    assert progress.is_training
    assert (progress.step, progress.best_val_loss, progress.tokens_per_sec) == told


def test_the_way_to_a_boundary_is_an_evaluation_and_a_step(paths: RunPaths) -> None:
    progress = Progress(paths)
    assert progress.boundary_s == 0
    write_evaluation(paths, 0, 5.0, seconds=7.0)
    write_step(paths, 1, tokens_per_sec=32.0)  # 64 tokens: two seconds
    progress.read()
    assert progress.boundary_s == 7 + 2


def test_samples_are_on_the_way_to_a_boundary_too(paths: RunPaths) -> None:
    progress = Progress(paths)
    write_evaluation(paths, 0, 5.0, seconds=7.0)
    for seconds in (3.0, 11.0, 4.0):
        append_event(paths.events, "sampled", step=1, seconds=seconds)
    progress.read()
    assert progress.boundary_s == 7 + 11


def test_what_training_spent_beside_training_is_told_once(paths: RunPaths) -> None:
    append_event(paths.events, "evaluated", step=0, seconds=9.0)  # in an earlier life
    progress = Progress(paths)
    append_event(paths.events, "evaluated", step=3, seconds=2.0)
    append_event(paths.events, "checkpoint_saved", step=4, stall_s=0.5, write_s=30.0)
    append_event(paths.events, "waited_for_data", seconds=4.0)
    append_event(paths.events, "evaluated", step=6, seconds=1.0)
    progress.read()
    told = {"evaluation": 3.0, "checkpoints": 0.5, "waiting_for_data": 4.0}
    assert progress.take_asides() == told
    progress.restart()  # reads all metrics again, and with them these evaluations
    progress.read()
    assert progress.take_asides() == {}


def test_shards_of_earlier_lives_are_counted_once_the_data_set_is_ready(paths: RunPaths) -> None:
    progress = Progress(paths)
    append_event(paths.events, "shard_written", tokens=500, seconds=1.0)
    progress.read()
    assert progress.shards == 1
    append_event(paths.events, "dataset_ready", shards=4)
    progress.read()
    assert progress.shards == 4


def test_silence_is_told_by_the_callers_clock_not_by_the_files(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "beat")
    heartbeat.restart(100.0)
    assert heartbeat.silence_s(100.5) == 0  # the first look finds a beat
    assert heartbeat.silence_s(130.0) == 29.5

    os.utime(tmp_path / "beat", (1, 1))  # a beat, even one that a clock set back has dated
    assert heartbeat.silence_s(131.0) == 0
    (tmp_path / "beat").unlink()
    heartbeat.silence_s(140.0)
    assert heartbeat.silence_s(150.0) == 10


def test_a_hellaswag_score_is_the_newest_and_why_there_is_none_is_told(paths: RunPaths) -> None:
    progress = Progress(paths)
    told = lambda: (progress.hellaswag_acc_norm, progress.hellaswag_missing)  # noqa: E731
    append_event(paths.events, "hellaswag_failed", why="the Hub is away")
    progress.read()
    assert told() == (None, "the Hub is away")
    score = {"step": 1, "tokens": 64, "hellaswag_acc": 0.25, "seconds": 2.0}
    append_line(paths.metrics, {**score, "hellaswag_acc_norm": 0.3})
    append_event(paths.events, "hellaswag_scored", step=1, seconds=2.0)
    write_step(paths, 2)
    progress.read()
    assert told() == (0.3, None)
    assert (progress.hellaswag_acc, progress.step, progress.loss) == (0.25, 2, 3.0)
    append_event(paths.events, "hellaswag_skipped", step=2, why="told to end", seconds=0.5)
    progress.read()
    assert told() == (0.3, "told to end")
    assert progress.take_asides() == {"evaluation": 2.5}
    assert progress.evaluation_s == 0  # a stop does not wait for it


def test_the_slow_rank_is_the_one_named_last_since_training_began(paths: RunPaths) -> None:
    progress = Progress(paths)
    for rank in (3, 5):
        append_event(paths.events, "slow_rank", rank=rank, node=0, seconds=0.4, median_s=0.2)
    progress.read()
    assert progress.slow_rank == SlowRank(rank=5, node=0, seconds=0.4, median_s=0.2)
    append_event(paths.events, "training_resumed", step=1)
    progress.read()
    assert progress.slow_rank is None


def test_a_rank_that_has_recovered_is_slow_no_longer(paths: RunPaths) -> None:
    progress = Progress(paths)
    append_event(paths.events, "slow_rank", rank=3, node=0, seconds=0.4, median_s=0.2)
    append_event(paths.events, "rank_recovered", rank=3)
    progress.read()
    assert progress.slow_rank is None


def test_a_target_is_reached_when_the_cool_down_that_it_started_is_over(paths: RunPaths) -> None:
    progress = Progress(paths)
    append_event(paths.events, "training_resumed", step=1)
    append_event(paths.events, "cooldown_started", step=1, last_step=3)
    write_step(paths, 2)
    progress.read()
    assert (progress.last_step, progress.has_reached_target) == (3, False)
    write_step(paths, 3)
    progress.read()
    assert progress.has_reached_target


def test_a_target_without_a_cool_down_is_reached_at_once(paths: RunPaths) -> None:
    progress = Progress(paths)
    assert not progress.has_reached_target
    append_event(paths.events, "target_reached", step=1)
    progress.read()
    assert (progress.last_step, progress.has_reached_target) == (None, True)


def test_what_did_not_fit_is_known_until_training_begins_anew(paths: RunPaths) -> None:
    progress = Progress(paths)
    append_event(paths.events, "out_of_memory", rank=1, micro_batch_size=8)
    progress.read()
    assert progress.out_of_memory is not None
    assert progress.out_of_memory["micro_batch_size"] == 8
    progress.restart()
    progress.read()
    assert progress.out_of_memory is None
