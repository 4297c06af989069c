"""Texts by the model that is being trained: what the losses mean, to read as it learns.

They are an extra, as HellaSwag's score is. What keeps them away is told, and never ends the run.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter

import torch

from training.config import Recipe
from training.distributed import Ranks
from training.errors import TrainingError
from training.layout import RunPaths, checkpoint_name, write_atomic
from training.model import GPT
from training.sample import SEPARATOR, write_texts
from training.telemetry import Telemetry
from training.tokenizer import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class RunSamples:
    """`model`: as it is trained, without what replicates or compiles it. Rank 0 alone writes."""

    recipe: Recipe
    model: GPT
    paths: RunPaths
    telemetry: Telemetry
    ranks: Ranks
    autocast: Callable[[], AbstractContextManager[None]]

    def write(self, step: int) -> None:
        """Texts to `samples/` and the log, or why there are none. The same seed at each step."""
        if not self.ranks.is_first or not self.recipe.sample.count:
            return
        self.telemetry.beat()
        started = perf_counter()
        try:
            texts = self._generate()
            path = self.paths.samples / f"{checkpoint_name(step)}.txt"
            write_atomic(path, (f"\n{SEPARATOR}\n".join(texts) + "\n").encode())
        except (TrainingError, OSError, RuntimeError) as error:  # torch raises RuntimeErrors
            why = error.message if isinstance(error, TrainingError) else str(error)
            self.telemetry.event("sampling_failed", step=step, why=why)
            self.telemetry.say(f"step {step}/{self.telemetry.steps}  no sample: {why}")
            return
        seconds = perf_counter() - started
        self.telemetry.event("sampled", step=step, seconds=seconds)
        self.telemetry.say(f"step {step}/{self.telemetry.steps}  a sample  {seconds:.1f} s")
        for text in texts:
            self.telemetry.say("  " + _for_a_log(text).replace("\n", "\n  "))

    def _generate(self) -> list[str]:
        settings = self.recipe.sample
        is_training = self.model.training
        self.model.eval()
        try:
            # Every text is one token longer than the last: compiled, each length would be new.
            with torch.compiler.set_stance("force_eager"), self.autocast():
                return write_texts(
                    self.model,
                    open_tokenizer(self.recipe.data.tokenizer),
                    prompt=settings.prompt,
                    count=settings.count,
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    seed=self.recipe.train.seed,
                )
        finally:
            self.model.train(is_training)


def _for_a_log(text: str) -> str:
    """With nothing that a terminal would obey, or that a log's encoding may not have."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, errors="replace").decode(encoding)
