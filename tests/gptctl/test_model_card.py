from decimal import Decimal

import pytest
import yaml
from msgspec.structs import replace

from gptctl.model_card import CardFacts, write_card
from tests.gptctl.run_folder import OFFER, RECIPE, make_bill, make_record, make_status
from training.config import ModelConfig, Recipe, ReferenceConfig
from training.layout import Status
from training.summary import Figures, measured_at, summarize

COMMIT = "9bb295ddab0e05d785b879661af7260fed5140fc"
REFERENCE = ReferenceConfig(
    source="llm.c",
    gpus="A100-80GB:8",
    hours=1.572,
    step_ms=300,
    price_per_hour=Decimal("22.32"),
    price_as_of="2026-11-21",
    usd=Decimal("35.09"),
    val_loss=3.29,
    hellaswag=0.299,
)
GPT2 = ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
FINEWEB = replace(RECIPE.data, source="fineweb", tokenizer="gpt2", revision=COMMIT)
LIKE_LLMC = replace(
    RECIPE,
    model=GPT2,
    data=FINEWEB,
    train=replace(RECIPE.train, steps=18_865, batch_tokens=524_288),
    eval=replace(RECIPE.eval, tokens=10_485_760),
    reference=REFERENCE,
)
AT = Figures(steps=18_865, val_loss=3.2921, hellaswag=0.2991)


def card(recipe: Recipe = LIKE_LLMC, at: Figures = AT, status: Status | None = None) -> str:
    offer = replace(OFFER, cloud="lambda", gpu="A100-80GB", gpu_count=8)
    record = make_record(
        recipe_name="gpt2-124m", recipe=recipe, offer=offer, versions={"torch": "2.13.0"},
        store="/home/ann/secret-store",
    )  # fmt: skip
    ended = status or make_status(
        state="succeeded", reason="completed", step=18_865, tokens=9_890_693_120,
        bill=(make_bill("preparing", 600), make_bill("training", 5400)),
    )  # fmt: skip
    summary = summarize(record, ended)
    has_tokenizer = recipe.data.tokenizer == "gpt2"
    return write_card(
        CardFacts(
            repo="ann/small-gpt",
            recipe=recipe,
            summary=summary,
            at=at,
            has_tokenizer=has_tokenizer,
        )
    )


def metadata(text: str) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return loaded


def test_the_metadata_is_what_the_hub_sorts_models_by() -> None:
    told = metadata(card())
    assert told["library_name"] == "transformers"
    assert told["pipeline_tag"] == "text-generation"
    assert told["datasets"] == ["HuggingFaceFW/fineweb"]
    assert "license" not in told  # nobody has given one
    (index,) = told["model-index"]  # type: ignore[misc]
    values = [result["metrics"][0]["value"] for result in index["results"]]
    assert (index["name"], values) == ("small-gpt", [3.2921, 0.2991])


@pytest.mark.parametrize(
    "fact",
    [
        "124,475,904 parameters", "step 18,865 of 18,865", "9,890,693,120 tokens",
        "huggingface.co/datasets/HuggingFaceFW/fineweb), `sample-10BT`, at commit `9bb295d",
        "Validation loss 3.2921", "GPT-2 3.4250", "llm.c at this step", "acc_norm 0.2991",
        "GPT-2 0.2945", "ends at a validation loss of 3.29", "A100-80GB:8 | A100-80GB:8",
        "Hours billed | 1.67 | 1.57", "Hours of training | 1.50 | 1.57", "Bill | $6.00 | $35.09",
        "1,831,610 | 1,747,627", "59.0% | 56.3%", "torch 2.13.0",
        'AutoTokenizer.from_pretrained("ann/small-gpt")',
    ],
)  # fmt: skip
def test_the_card_tells(fact: str) -> None:
    assert fact in card()


def test_a_run_that_ended_early_or_goes_on_says_so() -> None:
    assert "had not come to its end" not in card()
    early = make_status(state="stopped", reason="budget", step=120)
    assert "it was stopped (budget) at step 120" in card(status=early)


def test_nothing_is_set_beside_what_was_measured_on_other_data() -> None:
    recipe = replace(LIKE_LLMC, data=replace(FINEWEB, source="hub:owner/texts", revision=""))
    told = card(recipe)
    assert "Validation loss 3.2921" in told
    assert "GPT-2 3.4250" not in told
    assert metadata(told)["datasets"] == ["owner/texts"]


def test_a_small_model_of_ones_own_text_gives_no_path_and_no_reference_away() -> None:
    data = replace(RECIPE.data, source="text", path="/home/ann/diary.txt")
    told = card(replace(RECIPE, data=data), at=Figures(steps=100))
    assert "texts of the trainer's own" in told
    assert "No validation loss was measured at step 100" in told
    assert "There is no tokenizer" in told
    assert "the reference" not in told
    assert "/home" not in told
    assert not {"datasets", "model-index"} & metadata(told).keys()


def test_only_what_was_measured_at_that_step_is_told_of_it() -> None:
    lines = [
        {"step": 80, "val_loss": 2.75},
        {"step": 100, "val_loss": 2.9},
        {"step": 100, "val_loss": 2.5},  # a resumed run measured it again
        {"step": 100, "hellaswag_acc_norm": 0.26, "hellaswag_acc": 0.25},
    ]
    assert measured_at(lines, 100) == Figures(steps=100, val_loss=2.5, hellaswag=0.26)
    assert measured_at(lines, 80) == Figures(steps=80, val_loss=2.75)
    assert measured_at(lines, 90) == Figures(steps=90)
