import subprocess
import sys
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.estimate import estimate
from gptctl.experience import add_experience, measured_by, read_experience
from tests.gptctl.estimates import make_measured
from tests.gptctl.run_folder import NOW, RECIPE, make_bill, make_record, make_status

RUN = make_measured("gpt2-124m", "H100:8", 3e6)


def test_what_was_added_is_read_back_and_nothing_is_where_nothing_was(tmp_path):
    path = tmp_path / "new" / "experience.jsonl"

    assert read_experience(path) == []
    add_experience(path, RUN)
    assert read_experience(path) == [RUN]


def test_newest_wins_for_the_same_recipe_gpu_and_count(tmp_path):
    path = tmp_path / "experience.jsonl"
    newer = replace(RUN, tokens_per_sec=4e6)
    others = [
        replace(RUN, gpu_count=1),
        replace(RUN, gpu="H200"),
        replace(RUN, recipe="other"),
        replace(RUN, nodes=2),
    ]

    for measured in (RUN, *others, newer):
        add_experience(path, measured)

    assert read_experience(path) == [*others, newer]


@pytest.mark.parametrize(
    "damage", [b'{"recipe": "gpt2-1', b"\xff\xfe", b"[]", b'{"recipe": 3}', b"\n\n"]
)
def test_damaged_line_costs_no_other(tmp_path, damage):
    path = tmp_path / "experience.jsonl"
    add_experience(path, RUN)
    path.write_bytes(path.read_bytes() + damage)  # and no newline, as where a writer was killed
    other = replace(RUN, gpu="H200")

    add_experience(path, other)

    assert read_experience(path) == [RUN, other]


def test_fields_of_a_newer_version_are_passed_over(tmp_path):
    path = tmp_path / "experience.jsonl"
    add_experience(path, RUN)
    path.write_bytes(path.read_bytes().replace(b'{"recipe"', b'{"watts":700,"recipe"'))

    assert read_experience(path) == [RUN]


def test_file_that_cannot_be_read_is_no_experience(tmp_path):
    assert read_experience(tmp_path) == []  # a folder


def test_several_processes_add_to_it_at_once_and_no_line_is_lost(tmp_path):
    path = tmp_path / "experience.jsonl"
    program = (
        "import sys; from pathlib import Path; from msgspec.structs import replace\n"
        "from tests.gptctl.test_experience import RUN; from gptctl.experience import *\n"
        "for i in range(200):\n"
        "    add_experience(Path(sys.argv[1]), replace(RUN, recipe=f'{sys.argv[2]}-{i}'))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "abc"]

    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert {m.recipe for m in read_experience(path)} == {
        f"{n}-{i}" for n in "abc" for i in range(200)
    }


def test_run_says_how_fast_its_training_was():
    measured = measured_by(make_record(), make_status())  # 12,800 tokens in 60 s of training

    assert measured is not None
    assert measured.tokens_per_sec == pytest.approx(12_800 / 60)
    assert (measured.recipe, measured.gpu, measured.gpu_count) == ("small", "CPU", 0)
    assert measured.machine == "local, this machine"
    assert measured.mfu is None
    assert measured.source == f"run small-3f9a, {NOW.date()}"
    assert measured.is_ours


def test_time_beside_training_is_not_counted():
    bill = (
        *(make_bill("preparing", 100), make_bill("training", 40), make_bill("evaluation", 60)),
        *(make_bill("checkpoints", 10), make_bill("waiting_for_data", 30)),
    )

    measured = measured_by(make_record(), make_status(bill=bill))

    assert measured is not None
    assert measured.tokens_per_sec == pytest.approx(12_800 / 40)


def test_run_of_several_lives_says_how_fast_the_last_one_was():
    bill = (make_bill("training", 30, life=1), make_bill("training", 30, life=2))

    measured = measured_by(make_record(), make_status(bill=bill, tokens_per_sec=777.0))

    assert measured is not None
    assert measured.tokens_per_sec == 777.0
    assert measured_by(make_record(), make_status(bill=bill, tokens_per_sec=None)) is None


@pytest.mark.parametrize(
    "status",
    [{"step": 3}, {"bill": (make_bill("training", 2),)}, {"bill": ()}, {"step": 0, "tokens": 0}],
)
def test_short_run_says_nothing(status):
    assert measured_by(make_record(), make_status(**status)) is None


def test_speed_is_of_the_machine_that_the_run_got_and_of_all_its_nodes():
    got = replace(make_record().offer, cloud="lambda", gpu="NVIDIA H100 80GB HBM3", gpu_count=8)
    record = make_record(nodes=2)

    measured = measured_by(record, make_status(offer=got))

    assert measured is not None
    assert (measured.gpu, measured.gpu_count, measured.nodes) == ("H100", 8, 2)
    expected = measured.tokens_per_sec * RECIPE.model.flops_per_token / (16 * 989e12)
    assert measured.mfu == pytest.approx(expected)
    assert measured.machine == ""


def test_next_estimate_of_the_same_run_is_what_it_took(tmp_path):
    path, record, status = tmp_path / "experience.jsonl", make_record(), make_status()
    measured = measured_by(record, status)
    assert measured is not None
    add_experience(path, measured)

    [found] = estimate(
        "small", RECIPE, [record.offer], known=read_experience(path), budget_usd=Decimal(1)
    ).offers

    assert found.phases["training"].seconds == pytest.approx(120)  # twice the steps that took 60 s
    assert found.phases["training"].usd == Decimal("0.12")
    assert found.mfu_source == f"measured here: run small-3f9a, {NOW.date()}"
