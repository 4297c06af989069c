import pytest

from training.reserve import Reserve, first_reserve

GPT2_124M = 12 * 124_475_904
"""Bytes of a checkpoint: fp32 weights and Adam's two moments."""


def test_the_reserve_only_grows() -> None:
    reserve = Reserve().learn(save_s=4, upload_s=10)
    assert reserve.learn(save_s=1, upload_s=1) == reserve
    assert reserve.seconds == 5 + 2 * 14
    assert reserve.learn(boundary_s=30).seconds == reserve.seconds + 30


def test_the_way_down_is_kept_in_reserve() -> None:
    assert Reserve(teardown_s=90).learn(save_s=2).seconds == 5 + 2 * 2 + 90


def test_before_anything_is_measured_the_reserve_is_a_guess_from_the_checkpoints_size() -> None:
    reserve = first_reserve(checkpoint_bytes=GPT2_124M, teardown_s=90)
    # 1.49 GB: 12 s to a slow disk and 37 s over a slow line, each twice.
    assert reserve.seconds == pytest.approx(5 + 2 * (11.95 + 37.34) + 90, abs=0.1)
    small = first_reserve(checkpoint_bytes=0, teardown_s=0, requests_s=2)
    assert small.seconds == 5 + 2 * 2  # even of nothing, every file is a request


def test_what_is_measured_takes_the_place_of_its_guess_and_of_no_other() -> None:
    guess = first_reserve(checkpoint_bytes=GPT2_124M, teardown_s=0)
    saved = guess.learn(save_s=1.5)
    assert saved.seconds == pytest.approx(5 + 2 * (1.5 + 37.34), abs=0.1)
    assert saved.learn(upload_s=6.0).seconds == 5 + 2 * (1.5 + 6.0)
    assert guess.learn(upload_s=300.0).seconds > guess.seconds


def test_what_would_recover_keeps_enough_for_one_more_machine_to_come_and_go() -> None:
    alone = first_reserve(checkpoint_bytes=0, teardown_s=90, setup_s=200)
    recovers = first_reserve(checkpoint_bytes=0, teardown_s=90, setup_s=200, loss_s=100)
    assert recovers.seconds - alone.seconds == 100 + 1.5 * 200 + 2.5
    assert recovers.last_call_s - alone.last_call_s == 100 + 1.5 * 200 + 2.5


def test_the_last_upload_may_take_what_is_left_but_for_the_way_down_and_the_last_word() -> None:
    reserve = Reserve(teardown_s=90)
    assert reserve.finish_s(131.0) == 40
    assert reserve.finish_s(float("inf")) == 900
    assert reserve.finish_s(reserve.last_call_s) == 1.5
    assert reserve.finish_s(0.0) == 1.0
