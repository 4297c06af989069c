from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.tiny import make_recipe, make_record
from training.layout import BillLine, Offer, RunPaths, Status, decode, encode
from training.summary import Summary, summarize, write_summary

REFERENCE = {
    "source": "llm.c", "gpus": "A100-80GB:8", "hours": 1.5, "step_ms": 300.0,
    "price_per_hour": Decimal("22.32"), "price_as_of": "2026-11-21", "usd": Decimal("33.48"),
    "val_loss": 3.29, "hellaswag": 0.299,
}  # fmt: skip
RECIPE = make_recipe(
    model={"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257},
    data={"tokenizer": "gpt2"},
    train={"steps": 18_865, "batch_tokens": 524_288},
    reference=REFERENCE,
)
OFFER = Offer(
    cloud="lambda", region="us-east-1", instance_type="gpu_8x_a100_80gb_sxm4", gpu="A100-80GB",
    gpu_count=8, spot=False, price_per_hour=Decimal("22.32"), price_source="SkyPilot",
    price_as_of="2026-11-21",
)  # fmt: skip


def bill(phase: str, seconds: float, life: int = 1) -> BillLine:
    return BillLine(life=life, phase=phase, seconds=seconds, price_per_hour=Decimal("22.32"))


def status(**changes: object) -> Status:
    fields = {
        "run_id": "tiny-0001", "state": "stopped", "phase": "stopped", "life": 2, "step": 9_000,
        "steps": 18_865, "tokens": 9_000 * 524_288, "reason": "user", "val_loss": 3.41,
        "best_val_loss": 3.4, "hellaswag_acc_norm": 0.28, "price_per_hour": Decimal("22.32"),
        "updated_at": datetime(2026, 11, 21, 15, tzinfo=UTC),
        "bill": (bill("preparing", 300), bill("training", 1000), bill("training", 2000, life=2)),
    }  # fmt: skip
    return Status(**fields | changes)  # type: ignore[arg-type]


def test_what_was_reached_stands_beside_what_was_promised() -> None:
    told = summarize(make_record(RECIPE, offer=OFFER), status())
    reached, promised = told.reached, told.promised
    assert promised is not None
    assert (told.state, told.reason, told.lives, told.best_val_loss) == ("stopped", "user", 2, 3.4)
    assert (reached.steps, promised.steps) == (9_000, 18_865)
    assert (reached.tokens, promised.tokens) == (4_718_592_000, 9_890_693_120)
    assert (reached.val_loss, promised.val_loss) == (3.41, 3.29)
    assert (reached.hellaswag, promised.hellaswag) == (0.28, 0.299)
    assert (reached.hours, reached.training_hours, promised.hours) == (0.9167, 0.8333, 1.5)
    assert (reached.usd, promised.usd) == (Decimal("20.4600"), Decimal("33.48"))
    assert reached.usd == status().spent_usd
    assert reached.tokens_per_sec == pytest.approx(4_718_592_000 / 3000)
    assert promised.tokens_per_sec == pytest.approx(1_747_627, abs=1)
    # The recipe's header: 56.3 % of eight times 312 TFLOP/s.
    assert promised.mfu == pytest.approx(0.563, abs=0.0005)
    assert reached.mfu == pytest.approx(0.563 * 1_572_864 / 1_747_627, rel=1e-3)
    assert (reached.gpus, promised.gpus) == ("A100-80GB:8", "A100-80GB:8")


def test_the_machine_is_the_one_it_got_and_all_nodes_count() -> None:
    got = replace(OFFER, gpu="H100", gpu_count=4)
    told = summarize(make_record(RECIPE, offer=OFFER, nodes=2), status(offer=got))
    assert (told.offer.gpu, told.nodes, told.reached.gpus) == ("H100", 2, "H100:8")
    assert told.reached.mfu == pytest.approx(1_572_864 * 803_478_528 / (8 * 989e12), rel=1e-6)


def test_a_run_that_reached_nothing_on_a_machine_without_a_peak_has_gaps_and_no_zeros() -> None:
    early = status(step=0, tokens=0, val_loss=None, hellaswag_acc_norm=None, bill=())
    told = summarize(make_record(make_recipe()), early)
    assert told.promised is None
    assert (told.reached.tokens_per_sec, told.reached.mfu, told.reached.val_loss) == (None,) * 3
    assert (told.reached.hours, told.reached.usd) == (0.0, Decimal(0))


def test_the_summary_lies_in_the_runs_folder_and_survives_the_disk(tmp_path: Path) -> None:
    record = make_record(RECIPE, offer=OFFER)
    paths = RunPaths(tmp_path, record.run_id)
    write_summary(paths, record, encode(status()))
    data = (paths.folder / "summary.json").read_bytes()
    assert decode(data, Summary, name="x") == summarize(record, status())
    assert b'"usd": "33.48"' in data  # money is never a float


def test_a_run_that_trained_nothing_has_none_and_a_full_disk_is_no_fault(
    tmp_path: Path, small_disk: Path
) -> None:
    record = make_record(RECIPE, offer=OFFER)
    paths = RunPaths(tmp_path, record.run_id)
    write_summary(paths, replace(record, job="prepare"), encode(status()))
    assert not paths.summary.exists()
    (small_disk / "full").write_bytes(bytes(1 << 20))
    write_summary(RunPaths(small_disk, record.run_id), record, encode(status()))
