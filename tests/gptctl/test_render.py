import io
from datetime import timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace
from rich.console import Console

from gptctl.cli.curve import draw_curve
from gptctl.cli.live import LiveProgress, PlainProgress, live_view, progress_line
from gptctl.cli.render import (
    describe_hellaswag,
    dollars,
    duration,
    plan_table,
    run_details,
    runs_table,
    summary,
)
from gptctl.plan import make_plan
from gptctl.report import Curves, cost_of
from gptctl.runs import view_run
from tests.gptctl.run_folder import NOW, OFFER, RECIPE, make_record, make_status
from training.errors import StorageUnavailableError
from training.layout import Lead, SlowRank

CURVES = Curves(
    train=tuple((step, 5.0 - step / 50) for step in range(100)), val=((0, 5.0), (50, 4.1))
)


def view(at_s=1.0, **status):
    now = NOW + timedelta(seconds=at_s)
    status.setdefault("updated_at", now)
    return view_run(make_record(), make_status(**status), "running", store="s3://b/p", now=now)


def text_of(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def command(*words):
    return " ".join(("gptctl", *words))


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (None, "-"),
        (Decimal(0), "$0.00"),
        (Decimal("0.0043"), "$0.0043"),
        (Decimal("12.3401"), "$12.35"),
        (Decimal(1234), "$1,234.00"),
    ],
)
def test_money_is_never_shown_as_less_than_it_is(usd, shown):
    assert dollars(usd) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.44, "0.4 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_are_short(seconds, shown):
    assert duration(seconds) == shown


def test_plan_shows_what_it_would_do_and_cost():
    shown = text_of(
        plan_table(make_plan("small", RECIPE, [OFFER], budget_usd=Decimal(36)), store="s")
    )

    for words in ("100 steps of 256 tokens", "2 ranks on cpu", "$3.60 an hour", "10 h 00 min"):
        assert words in shown


def test_unknown_values_are_dashes():
    row = text_of(runs_table([view(val_loss=None, tokens_per_sec=None)])).splitlines()[-2]

    assert row.split()[:5] == ["small-3f9a", "training", "50/100", "-", "-"]


def test_stale_run_says_so_without_colour():
    shown = text_of(run_details(view(at_s=90, updated_at=NOW)))

    assert "training (stale)" in shown
    assert "no sign of life for 90 s" in shown


def test_curve_fits_its_size_and_has_no_escape_codes():
    lines = draw_curve(CURVES, width=60, height=12).splitlines()

    assert len(lines) == 13
    assert max(map(len, lines)) <= 60
    assert any("o" in line for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_curve_of_a_summary_fits_a_narrow_terminal():
    ended = view(state="succeeded", reason="completed", step=100)
    cost = cost_of(make_record(), make_status())
    shown = text_of(
        summary(
            ended, curves=CURVES, samples=None, cost=cost, record=make_record(), command=command
        ),
        width=60,
    )

    (top,) = [line for line in shown.splitlines() if "┌" in line and "┐" in line]
    assert len(top) <= 60


def test_two_curves_in_one_process_do_not_mix():
    first = draw_curve(CURVES, width=60, height=12)
    draw_curve(Curves(val=((0, 900.0), (10, 800.0))), width=60, height=12)

    assert draw_curve(CURVES, width=60, height=12) == first


def test_nothing_measured_draws_nothing():
    assert draw_curve(Curves(val=((0, 5.0),)), width=60, height=12) == ""


def test_without_a_terminal_a_line_comes_when_the_phase_changes_and_each_ten_seconds():
    console = Console(file=io.StringIO(), width=200)
    with PlainProgress(console) as progress:
        for at_s, phase in ((0, "preparing"), (1, "training"), (5, "training"), (12, "training")):
            progress.show(view(at_s, phase=phase, loss=2.0))

    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["preparing", "training", "training"]
    assert "step 50/100" in lines[-1]
    assert "of $1.00" in lines[-1]


LEAD = Lead(
    ready_tokens=400_000,
    wanted_tokens=1_000_000,
    is_done=False,
    shards=3,
    tokens=250_000,
    seconds=125.0,
    tokens_per_sec=24_000.0,
)


def test_how_far_the_data_is_ahead_is_told_until_all_is_ready():
    told = "3 shards ahead, 2 min 05 s of training, at 24,000 tokens/s"
    going = view(lead=LEAD)
    assert f"data: {told}\n" in text_of(live_view(going, CURVES)).replace("  ", "")
    assert progress_line(going).endswith(f"data {told}")
    ready = f"400,000 of 1,000,000 training tokens ready; {told}"
    assert ready in text_of(run_details(going), width=140)

    done = view(lead=replace(LEAD, is_done=True))
    assert "data" not in text_of(live_view(done, CURVES))
    assert "all that it needs is ready" in text_of(run_details(done))
    over = view(state="succeeded", lead=LEAD)
    assert "ahead" not in text_of(run_details(over))


def test_a_race_that_is_lost_and_training_that_waits_are_told():
    lost = replace(LEAD, is_losing=True, is_waiting=True, waits_s=3700.0)
    line = progress_line(view(lead=lost))
    assert "training waits for it, too slow: training will wait 1 h 01 min in all" in line
    before = view(lead=replace(LEAD, seconds=None, tokens_per_sec=None))
    assert progress_line(before).endswith("data 3 shards ahead")


def test_live_view_draws_the_curve_as_it_comes_and_keeps_it_when_the_store_is_away():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    answers = iter([Curves(), CURVES])

    def read_curves():
        try:
            return next(answers)
        except StopIteration:
            raise StorageUnavailableError("down") from None

    seen = []
    with LiveProgress(console, read_curves) as progress:
        for step in (10, 20, 30):
            console.file.truncate(0)
            progress.show(view(step=step))
            seen.append(console.file.getvalue())

    assert "no loss measured yet" in seen[0]
    assert all("line: train" in shown for shown in seen[1:])
    assert "step 50 of 100" in text_of(live_view(view(), CURVES))


def test_summary_has_curve_words_bill_place_and_next_commands():
    ended = view(state="succeeded", reason="completed", step=100)
    cost = cost_of(make_record(), make_status())
    shown = text_of(
        summary(
            ended,
            curves=CURVES,
            samples="def spam():\n",
            cost=cost,
            record=make_record(),
            command=command,
        )
    )

    for words in (
        "line: train",
        "def spam():",
        "$0.0635",
        "s3://b/p/runs/small-3f9a",
        "gptctl sample small-3f9a",
        "gptctl pull-checkpoint small-3f9a",
        "gptctl cost show small-3f9a",
    ):
        assert words in shown


def test_summary_of_a_stopped_run_begins_with_how_to_go_on():
    stopped = view(state="stopped", reason="budget")
    shown = text_of(
        summary(
            stopped,
            curves=Curves(),
            samples=None,
            cost=cost_of(make_record(), make_status()),
            record=make_record(),
            command=command,
        )
    )

    assert "stopped (budget)" in shown
    assert shown.split("next:")[1].split()[:3] == ["gptctl", "launch", "--resume"]


def test_a_hellaswag_score_and_its_absence_are_shown():
    scored = view(hellaswag_acc=0.2859, hellaswag_acc_norm=0.2955)
    missing = view(hellaswag_missing="the Hub is away")

    assert "HellaSwag  acc_norm 0.2955, acc 0.2859" in text_of(run_details(scored))
    assert "no score: the Hub is away" in text_of(run_details(missing))
    assert "HellaSwag" not in text_of(run_details(view()))
    assert "HellaSwag acc_norm 0.2955" in text_of(live_view(scored, CURVES))
    assert "no score: the Hub is away" in text_of(live_view(missing, CURVES))


def test_a_slow_rank_is_named_while_the_run_goes_on():
    slow = SlowRank(rank=13, node=1, seconds=0.412, median_s=0.3)

    told = "rank 13, on node 1: 0.412 s a forward pass, the others 0.300 s"
    assert told in text_of(run_details(view(slow_rank=slow)))
    assert told in text_of(live_view(view(slow_rank=slow), CURVES))
    assert "rank 13 is slow" in progress_line(view(slow_rank=slow))
    assert "slow" not in text_of(run_details(view(slow_rank=slow, state="succeeded")))
    assert "slow" not in text_of(run_details(view()))


def test_a_hellaswag_score_stands_beside_that_of_the_reference():
    shown = describe_hellaswag(acc=0.2859, acc_norm=0.2955, reference=0.299)

    assert shown == "acc_norm 0.2955, acc 0.2859; the reference: 0.299"
