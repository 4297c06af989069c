"""The model card of a published checkpoint, made of the run's facts (pure).

Everybody can read it: it names data sets, machines and money, and no path, store or person.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal

from huggingface_hub import EvalResult, ModelCardData
from msgspec import Struct

from training.config import DataConfig, Recipe
from training.reference import beside_hellaswag, beside_val_loss, describe_beside
from training.summary import Figures, Summary

LIBRARY = "transformers"
HELLASWAG = "Rowan/hellaswag"


class CardFacts(Struct, frozen=True, kw_only=True):
    """`at`: what was measured of this very checkpoint; the summary is of the run as a whole."""

    repo: str
    recipe: Recipe
    summary: Summary
    at: Figures
    has_tokenizer: bool

    @property
    def step(self) -> int:
        assert self.at.steps is not None, "a checkpoint has a step"
        return self.at.steps


def write_card(facts: CardFacts) -> str:
    """`README.md`: metadata that the Hub reads, then the text."""
    return "\n".join(["---", _metadata(facts), "---", "", *_body(facts)]) + "\n"


def _metadata(facts: CardFacts) -> str:
    repo = facts.recipe.data.hub_repo
    results = []
    if facts.at.val_loss is not None and repo:
        results.append(_result(repo, "val_loss", "Validation loss (nats/token)", facts.at.val_loss))
    if facts.at.hellaswag is not None:
        results.append(_result(HELLASWAG, "acc_norm", "acc_norm", facts.at.hellaswag))
    card = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="text-generation",
        tags=["gpt2", "gptctl"],
        datasets=[repo] if repo else None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _result(dataset: str, metric: str, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset,
        dataset_name=dataset.partition("/")[2],
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 4),
    )


def _body(facts: CardFacts) -> Iterator[str]:
    recipe, summary = facts.recipe, facts.summary
    name = facts.repo.partition("/")[2]
    yield f"# {name}"
    yield ""
    yield (
        f"A GPT-2 of {recipe.model.parameters:,} parameters, trained from scratch by gptctl's "
        f"recipe `{summary.recipe}`: the checkpoint of step {facts.step:,} of "
        f"{recipe.train.steps:,}, after {facts.step * recipe.train.batch_tokens:,} tokens."
    )
    if summary.state != "succeeded":
        yield ""
        yield f"The run had not come to its end: it was {_ending(summary)}."
    yield from _section("How to load it", _usage(facts))
    yield from _section("What it reached", _results(facts))
    yield from _section("How it was trained", _table(_training(recipe)))
    yield from _section("What it took", _costs(summary))
    versions = [f"{package} {version}" for package, version in sorted(summary.versions.items())]
    if versions:
        yield from _section("Made with", [", ".join(versions)])


def _ending(summary: Summary) -> str:
    reason = f" ({summary.reason})" if summary.reason else ""
    return f"{summary.state}{reason} at step {summary.reached.steps:,}"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "", *lines)


def _usage(facts: CardFacts) -> list[str]:
    repo = facts.repo
    load = f'model = AutoModelForCausalLM.from_pretrained("{repo}")'
    if not facts.has_tokenizer:
        return [
            "```python",
            "from transformers import AutoModelForCausalLM",
            "",
            load,
            "```",
            "",
            "There is no tokenizer: each byte of a UTF-8 text is its own id, and 256 ends a text.",
        ]
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        load,
        'inputs = tokenizer("Hello, I\'m a language model,", return_tensors="pt")',
        "texts = model.generate(**inputs, do_sample=True, top_k=50, max_new_tokens=100)",
        "print(tokenizer.decode(texts[0]))",
        "```",
    ]


def _results(facts: CardFacts) -> list[str]:
    recipe, at = facts.recipe, facts.at
    lines = []
    if at.val_loss is None:
        lines.append(f"No validation loss was measured at step {facts.step:,}.")
    else:
        tokens = f"the first {recipe.eval.tokens:,} tokens of its validation shard"
        beside = describe_beside(beside_val_loss(recipe, facts.step))
        lines.append(f"- Validation loss {at.val_loss:.4f} nats per token, on {tokens}{beside}.")
    if at.hellaswag is not None:
        beside = describe_beside(beside_hellaswag(recipe))
        lines.append(f"- HellaSwag acc_norm {at.hellaswag:.4f}{beside}.")
    if (promised := facts.summary.promised) is not None and promised.val_loss is not None:
        lines.append(
            f"- The recipe's reference ({facts.summary.promised_by}) ends at a validation loss of "
            f"{promised.val_loss:g}."
        )
    return lines


def _training(recipe: Recipe) -> dict[str, str]:
    model, train = recipe.model, recipe.train
    rate = f"{train.max_lr:g} to {train.min_lr:g}, {train.schedule}, {train.warmup_steps:,} to warm"
    muon = f"Muon ({train.muon_lr:g}) for hidden matrices, "
    return {
        "Model": f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, context of "
        f"{model.block_size:,}, vocabulary of {model.vocab_size:,}",
        "Data": _describe_data(recipe.data),
        "Tokens in a step": f"{train.batch_tokens:,}",
        "Optimizer": f"{muon if train.optimizer == 'muon' else ''}AdamW, β {train.beta1:g} and "
        f"{train.beta2:g}, weight decay {train.weight_decay:g}, clipped at {train.grad_clip:g}",
        "Learning rate": f"{rate} up",
        "Seed": str(train.seed),
    }


def _describe_data(data: DataConfig) -> str:
    repo = data.hub_repo
    if repo is None:
        own = {"text": "texts of the trainer's own", "tokens": "tokens of the trainer's own"}
        return own.get(data.source, data.source)
    config = data.config or data.default_config
    commit = f", at commit `{data.revision}`" if data.revision else ""
    return f"[{repo}](https://huggingface.co/datasets/{repo})" + (
        f", `{config}`{commit}" if config else commit
    )


def _costs(summary: Summary) -> list[str]:
    reached, promised = summary.reached, summary.promised
    lines: list[tuple[str, ...]] = [("", "this run", "the reference"), ("---", "---", "---")]
    for name, tell in _COSTS.items():
        lines.append((name, tell(reached), tell(promised) if promised else "-"))
    if promised is None:
        lines = [line[:2] for line in lines]
    return [f"| {' | '.join(line)} |" for line in lines]


def _table(rows: dict[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _money(value: Decimal | None) -> str:
    if value is None:
        return "-"
    return f"${value:.4f}" if 0 < value < Decimal("0.1") else f"${value:.2f}"


_COSTS: dict[str, Callable[[Figures], str]] = {
    "Hardware": lambda figures: figures.gpus or "-",
    "Hours billed": lambda figures: _number(figures.hours, ".2f"),
    "Hours of training": lambda figures: _number(figures.training_hours, ".2f"),
    "Price per hour": lambda figures: _money(figures.price_per_hour),
    "Bill": lambda figures: _money(figures.usd),
    "Tokens per second": lambda figures: _number(figures.tokens_per_sec, ",.0f"),
    "MFU, by llm.c's count": lambda figures: _number(figures.mfu, ".1%"),
}
