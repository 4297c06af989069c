import pytest
from msgspec.structs import replace

from gptctl.phases import (
    HELLASWAG_TOKENS,
    MINUTE_S,
    Span,
    list_phases,
)
from tests.gptctl.estimates import recipe_of
from training.preparation import (
    GIGATOKEN_TOKENS_PER_S,
    LINK_BYTES_PER_S,
    PARQUET_FILE_BYTES,
)
from training.schedule import is_due

HOUR = Span(3000, 3600, 5000)


def phases_of(recipe="gpt2-124m", *, steps=18_865, cloud="lambda", spot=False, **train):
    return list_phases(recipe_of(recipe, **train), HOUR, steps=steps, cloud=cloud, spot=spot)


def seconds_of(phases):
    return sum(span.likely for span in phases.values())


def test_every_phase_is_a_range():
    for cloud in ("lambda", "local"):
        for span in phases_of(cloud=cloud, spot=True, compile=True).values():
            assert 0 <= span.low <= span.likely <= span.high


def test_this_machine_is_neither_made_nor_given_back_nor_billed_by_the_minute():
    phases = phases_of(cloud="local")

    for name in ("provisioning", "teardown", "billing_granularity"):
        assert phases[name] == Span(0, 0, 0)
    assert 0 < phases["setup"].likely < phases_of()["setup"].likely


def test_lambda_bills_whole_minutes_and_aws_whole_seconds():
    by_minute, by_second = phases_of(cloud="lambda"), phases_of(cloud="aws")

    assert seconds_of(by_minute) / MINUTE_S == pytest.approx(round(seconds_of(by_minute) / 60))
    assert seconds_of(by_second) == pytest.approx(round(seconds_of(by_second)))
    assert by_minute["billing_granularity"].high == 60
    assert by_second["billing_granularity"].likely < 1


def test_cloud_of_which_nothing_is_known_is_taken_to_bill_by_the_minute():
    assert phases_of(cloud="verda")["billing_granularity"].high == MINUTE_S


@pytest.mark.parametrize("steps", [1, 250, 251, 18_865])
def test_evaluations_are_counted_as_the_training_loop_has_them(steps):
    recipe = recipe_of("gpt2-124m")
    count = sum(is_due(step, recipe.eval.every, last=steps) for step in range(steps + 1))
    tokens = steps * recipe.train.batch_tokens

    scores = sum(
        is_due(step, recipe.eval.hellaswag_every, last=steps) for step in range(1, steps + 1)
    )
    evaluated = count * recipe.eval.tokens + scores * HELLASWAG_TOKENS

    expected = evaluated / tokens * HOUR.likely / 3  # forward: 2N of 6N FLOPs
    assert phases_of(steps=steps)["evaluation"].likely == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 5000, 5001, 18_865])
def test_each_checkpoint_stalls_training_and_the_last_one_is_waited_for(steps):
    every = recipe_of("gpt2-124m").checkpoint.every
    count = sum(is_due(step, every, last=steps) for step in range(1, steps + 1))
    size = 124_475_904 * 12

    stall, write = size / 2.5e9, size / 0.5e9
    assert phases_of(steps=steps)["checkpoints"].likely == pytest.approx(count * stall + write)


def test_larger_model_takes_longer_to_save_and_send():
    small, large = phases_of(), phases_of("gpt2-1558m")

    for name in ("checkpoints", "upload"):
        assert small[name].likely < large[name].likely


def test_compiling_is_for_gpus_unless_the_recipe_says_otherwise():
    def likely(**options):
        compiles = options.pop("compile", None)
        recipe = recipe_of("gpt2-124m", compile=compiles)
        phases = list_phases(recipe, HOUR, steps=100, cloud="lambda", spot=False, **options)
        return phases["compile"].likely

    assert likely() > 0
    assert likely(on_gpu=False) == likely(compile=False) == 0
    assert likely(on_gpu=False, compile=True) == likely()


def test_first_shards_are_no_longer_than_what_is_trained_on():
    one, all_of_it = phases_of(steps=1)["first_shard"], phases_of()["first_shard"]
    fetched_s = PARQUET_FILE_BYTES / LINK_BYTES_PER_S

    assert one.likely - fetched_s < 1
    assert all_of_it.likely - fetched_s == pytest.approx(2 * 100e6 / (2 * GIGATOKEN_TOKENS_PER_S))


def test_text_of_ones_own_is_not_fetched():
    recipe = recipe_of("gpt2-124m")
    text = replace(recipe, data=replace(recipe.data, source="text", path="book.txt"))
    phases = list_phases(text, HOUR, steps=1000, cloud="lambda", spot=False)

    assert phases["first_shard"].likely == pytest.approx(2 * 100e6 / 4e6)


def test_training_that_waits_for_data_takes_longer_by_as_much():
    recipe = recipe_of("gpt2-124m")
    phases = list_phases(recipe, HOUR, steps=1000, cloud="lambda", spot=False, waiting=0.5)

    assert phases["waiting_for_data"] == Span(0, 1800, 2500)
    assert "waiting_for_data" not in phases_of()


def test_spot_machine_may_be_taken_away_and_most_likely_is_not():
    phases = phases_of(spot=True)
    lost_s = 5000 / 18_865 * HOUR.high  # from one checkpoint to the next
    again_s = phases["provisioning"].high + phases["setup"].high

    assert "preemptions" not in phases_of()
    assert phases["preemptions"].likely == 0
    assert phases["preemptions"].high == pytest.approx(again_s + lost_s)


def test_more_time_in_training_is_more_preemptions_at_worst():
    recipe = recipe_of("gpt2-124m")
    short, long = (
        list_phases(recipe, HOUR.times(factor), steps=18_865, cloud="aws", spot=True)
        for factor in (1, 10)
    )

    assert long["preemptions"].high > 10 * short["preemptions"].high
    assert replace(long["preemptions"], high=0.0) == Span(0, 0, 0)
