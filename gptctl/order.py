"""What the user asked for → a plan: reads the recipe, asks the backend what there is."""

from collections.abc import Callable
from datetime import date
from glob import escape, iglob
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gptctl.backends import LOCAL, Backend, Wanted, parse_clouds
from gptctl.errors import PlanRefusedError, UsageError
from gptctl.plan import Limits, Plan, make_plan
from gptctl.recipe import read_recipe
from training.config import TOKEN_SUFFIXES, BudgetConfig, DataConfig, Recipe
from training.layout import RunJob
from training.preparation import text_bytes_per_token
from training.storage import node_environment
from training.text_files import find_files, translating_read_errors

TEXT_FOLDER = "text"
"""Of a rented node's working folder, where data from this machine are put."""
NANOGPT_META = "meta.pkl"
"""Beside nanoGPT's files whose ids are of a vocabulary of their own. A file is brought without."""
SHORT_TEXT_VAL_FRACTION = 0.1
"""Kept of a text of which the first shard would be too much: as nanoGPT does with Shakespeare."""


class Order(Struct, frozen=True, kw_only=True):
    """A launch as it was asked for. `data` is absolute; None is what was not said."""

    recipe: str
    overrides: tuple[str, ...] = ()
    data: Path | None = None
    cloud: str | None = None
    gpus: str | None = None
    region: str | None = None
    nodes: int = 1
    spot: bool = False
    recover: bool = False
    limits: Limits = Limits()
    job: RunJob = "train"
    whole: bool = False


def plan_order(
    order: Order, *, open_backend: Callable[..., Backend], store: str, today: date
) -> tuple[Plan, Backend]:
    """Raises UsageError and PlanRefusedError for what cannot be launched, or not there."""
    recipe_name, recipe = read_recipe(order.recipe, order.overrides)
    if order.gpus is not None:
        gpus = tuple(word.strip() for word in order.gpus.split(",") if word.strip())
        if not gpus:
            raise UsageError(f"--gpus {order.gpus!r} names no GPUs", hint="such as A100-80GB:8")
        recipe = replace(recipe, node=replace(recipe.node, gpus=gpus))
    clouds = parse_clouds(order.cloud or recipe.node.cloud)
    is_local = clouds == (LOCAL,)
    if order.job == "prepare":
        if is_local:
            raise UsageError(
                f"`--cloud {LOCAL}` is no rented machine", hint="leave it out to prepare data here"
            )
        recipe = without_training(recipe)
    if is_local and (order.region or order.spot or order.recover or order.nodes > 1):
        raise UsageError(
            "--region, --spot, --recover and --nodes are about rented machines",
            hint="`--cloud lambda` rents one",
        )
    recipe = with_data(recipe, order.data, globs=is_local)
    text = None
    if recipe.data.takes_path and recipe.data.path and not is_local:
        text = Path(recipe.data.path)
        on_node = replace(recipe.data, path=f"{TEXT_FOLDER}/{text.name}")
        recipe = replace(recipe, data=on_node)
    recipe = pin(recipe)
    if not is_local:
        node_environment(store)  # raises for a store that no other machine can reach
    backend = open_backend(*clouds)
    wanted = Wanted(
        gpus=recipe.node.gpus,
        cpu_ranks=recipe.node.cpu_ranks,
        region=order.region,
        spot=order.spot,
        price_per_hour=order.limits.price_per_hour,
        today=today,
    )
    plan = make_plan(
        recipe_name,
        recipe,
        backend.offers(wanted),
        nodes=order.nodes,
        budget_usd=order.limits.budget_usd,
        max_hours=order.limits.max_hours,
    )
    plan = replace(
        plan,
        text=text,
        region=order.region,
        recover=order.recover or order.spot,
        job=order.job,
        whole=order.whole,
    )
    return plan, backend


def without_training(recipe: Recipe) -> Recipe:
    """For a machine that only prepares its data: one without GPUs, and no limits of the run's."""
    return replace(
        recipe,
        node=replace(recipe.node, gpus=(), cpu_ranks=1),
        eval=replace(recipe.eval, hellaswag=False),
        budget=BudgetConfig(),
        reference=None,
    )


def with_data(recipe: Recipe, path: Path | None, *, globs: bool) -> Recipe:
    """The recipe, with the data at `path` (absolute) where that is given instead of its own.

    Token files are taken as they are, all else is text; of a text for which the first shard would
    be too much to keep for validation, a tenth is. Raises UsageError where the recipe does not take
    tokens, PlanRefusedError where there is nothing, DataError where it may not be read.
    """
    data = recipe.data
    if path is not None:
        data = replace(data, source="text", path=str(path), revision="")
        if _holds_tokens(path):
            data = _with_tokens(data)
    if data.takes_path and data.path:
        data = replace(data, path=str(Path(data.path).absolute()))
        check_path(Path(data.path), globs=globs)
        if data.source == "text" and not data.val_fraction and _is_short(data):
            data = replace(data, val_fraction=SHORT_TEXT_VAL_FRACTION)
    return replace(recipe, data=data)


def _is_short(data: DataConfig) -> bool:
    """Whether the first shard is more than half of it, or all."""
    with translating_read_errors(Path(data.path)):
        size_bytes = sum(path.stat().st_size for path in find_files(Path(data.path)))
    return 2 * data.shard_tokens > size_bytes / text_bytes_per_token(data)


def _with_tokens(data: DataConfig) -> DataConfig:
    path = Path(data.path)
    if path.is_file() and path.with_name(NANOGPT_META).exists():
        raise UsageError(
            f"{path} holds ids of a vocabulary of its own, as {NANOGPT_META} beside it says",
            hint="only tokens of GPT-2's vocabulary are taken; or give the text that they are of",
        )
    try:
        return replace(data, source="tokens", val_fraction=0.0)
    except ValueError as error:
        raise UsageError(
            f"{path} does not suit this recipe: {error}",
            hint="`--set data.tokenizer=gpt2 --set model.vocab_size=50257` makes it one that does",
        ) from error


def _holds_tokens(path: Path) -> bool:
    """Whether the file, or one that lies in the folder, or that the glob finds, holds token ids."""
    try:
        if path.is_file():
            return path.suffix in TOKEN_SUFFIXES
        pattern = f"{escape(str(path))}/*" if path.is_dir() else str(path)
    except OSError:
        return False  # as what cannot be read it is refused by `check_path`
    return any(name.endswith(TOKEN_SUFFIXES) for name in iglob(pattern, recursive=True))  # noqa: PTH207


def pin(recipe: Recipe) -> Recipe:
    """The recipe with the commit that its data set on the Hub is at now, if it names none.

    So all nodes, and all lives of a run, read the same. Raises DataError: unknown, gated, or out
    of reach.
    """
    data = recipe.data
    if data.hub_repo is None or data.is_pinned:
        return recipe
    from training.hub import resolve  # noqa: PLC0415 - the Hub's client takes long

    commit = resolve(data.hub_repo, data.revision or "main")
    return replace(recipe, data=replace(data, revision=commit))


def check_path(path: Path, *, globs: bool) -> None:
    """Raises PlanRefusedError where this machine lacks what it would train on."""
    hint = "`--data` takes a file, a folder or a glob such as 'books/*.txt'"
    if not globs:
        hint = "for a rented machine `--data` takes a file or a folder"
    try:
        # Globs as the node reads them, which pathlib's are not.
        found = path.exists() or (globs and any(iglob(str(path), recursive=True)))  # noqa: PTH207
    except OSError as error:
        raise PlanRefusedError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if not found:
        raise PlanRefusedError(f"there is no text at {path}", hint=hint)
