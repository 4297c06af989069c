"""Tokens a second of training: our model and step beside transformers' GPT-2 and a plain loop.

    python bench/train_step.py [--device cpu|cuda] [--model small|124m|350m] [--rounds N]
                               [--dtype float32|bfloat16] [--compile] [--first-step]
    torchrun --standalone --nproc-per-node 2 bench/train_step.py …

All three have the same weights, batch, precision and AdamW (torch's fused one, its fastest),
clip gradients at 1, and are replicas under torch's DDP where torchrun starts several ranks, who
share the batch. That their first losses and gradients agree is checked before anything is timed.
Rounds alternate; a ratio is that of medians. `small` is GPT-2 scaled down to what a CPU trains in a
night: its vocabulary, a quarter of its layers, a third of its width. `--first-step` times fresh
processes of ours instead, from start to the end of the first update: eager, compiled with an empty
cache, and with the cache that this has filled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from plain_gpt import PlainGPT
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from training.config import ModelConfig, TrainConfig
from training.distributed import Ranks, join_ranks
from training.model import GPT
from training.optimizer import Optimizers, clip_gradients
from training.peaks import peak_flops

VOCAB_SIZE, END_OF_TEXT = 50257, 50256
MODELS = {
    "small": ((3, 4, 256, 256), 8),  # (n_layer, n_head, n_embd, block_size), rows a step
    "124m": ((12, 12, 768, 1024), 64),
    "350m": ((24, 16, 1024, 1024), 32),
}
WARMUP_ROUNDS = 2
RESULT = Path(__file__).parent / "results" / "train_step.json"


@dataclass(frozen=True, slots=True)
class Setting:
    ranks: Ranks
    shape: ModelConfig
    inputs: Tensor
    targets: Tensor
    is_bfloat16: bool
    is_compiled: bool

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def tokens(self) -> int:
        """Of all ranks."""
        return self.inputs.numel() * self.ranks.world_size

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def replicate(self, model: Any) -> Any:
        if self.ranks.world_size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)


@dataclass(frozen=True, slots=True)
class Contender:
    """A model, the loss of its batch, and what updates it by its gradients."""

    setting: Setting
    model: nn.Module
    loss: Callable[[], Tensor]
    update: Callable[[], None]

    def backward(self) -> float:
        device, enabled = self.setting.device.type, self.setting.is_bfloat16
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def step(self) -> float:
        """Seconds, from where all ranks stand."""
        self.setting.ranks.barrier()
        started = perf_counter()
        self.backward()
        self.update()
        self.setting.wait()
        return perf_counter() - started


def make_setting(arguments: argparse.Namespace, ranks: Ranks) -> Setting:
    (n_layer, n_head, n_embd, block_size), rows = MODELS[arguments.model]
    shape = ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=VOCAB_SIZE,
    )
    size = ((arguments.rows or rows) // ranks.world_size, block_size + 1)
    generator = torch.Generator().manual_seed(1 + ranks.rank)
    tokens = torch.randint(0, VOCAB_SIZE, size, generator=generator).to(ranks.device)
    return Setting(
        ranks=ranks,
        shape=shape,
        inputs=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        is_bfloat16=arguments.dtype == "bfloat16",
        is_compiled=arguments.compile,
    )


def make_ours(setting: Setting) -> Contender:
    model = GPT(setting.shape).to(setting.device)
    train = TrainConfig(
        steps=1,
        batch_tokens=setting.tokens,
        micro_batch_size=len(setting.inputs),
        max_lr=6e-4,
        warmup_steps=0,
    )
    optimizers = Optimizers(model, train, setting.ranks)
    if setting.is_compiled:
        torch._dynamo.config.optimize_ddp = False  # blocks are compiled one by one
        model.compile_blocks()
    replica = setting.replicate(model)

    def update() -> None:
        clip_gradients(model, train.grad_clip)
        optimizers.step(1.0)

    return Contender(setting, model, partial(replica, setting.inputs, setting.targets), update)


def make_plain(setting: Setting) -> Contender:
    model = PlainGPT(setting.shape)
    model.load_state_dict(GPT(setting.shape).state_dict())
    model.to(setting.device)
    forward: Any = torch.compile(model) if setting.is_compiled else model
    loss = partial(setting.replicate(forward), setting.inputs, setting.targets)
    return Contender(setting, model, loss, plain_update(model))


def make_transformers(setting: Setting) -> Contender:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - ours must not wait

    from training.export import rename_for_transformers, transformers_config  # noqa: PLC0415

    config: dict[str, Any] = transformers_config(setting.shape, end_of_text=END_OF_TEXT)
    model: Any = GPT2LMHeadModel(GPT2Config(**config))  # type: ignore[no-untyped-call]
    weights = rename_for_transformers(GPT(setting.shape).state_dict(), setting.shape)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.to(setting.device).train()
    forward = setting.replicate(torch.compile(model) if setting.is_compiled else model)

    def loss() -> Tensor:
        labels = {"labels": setting.targets, "shift_labels": setting.targets}  # shifted already
        out: Tensor = forward(input_ids=setting.inputs, use_cache=False, **labels).loss
        return out

    return Contender(setting, model, loss, plain_update(model))


def plain_update(model: nn.Module) -> Callable[[], None]:
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0},
        ],
        lr=6e-4,
        betas=(0.9, 0.95),
        fused=True,
    )

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def check_agreement(contenders: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """Of the first step: losses, and gradients of the positions, which all others flow into."""
    found = {}
    ours = Tensor()
    for name, contender in contenders.items():
        loss = contender.backward()
        (positions,) = (p for n, p in contender.model.named_parameters() if "wpe" in n)
        assert positions.grad is not None
        ours = positions.grad.clone() if name == "ours" else ours
        difference = float((positions.grad - ours).norm() / ours.norm())
        found[name] = {"loss": round(loss, 5), "gradient_differs_by": round(difference, 5)}
        limit = 0.05 if contender.setting.is_bfloat16 else 0.005
        if abs(loss - found["ours"]["loss"]) > 0.005 or difference > limit:
            raise SystemExit(f"{name} is another model than ours: {found}")
        contender.model.zero_grad(set_to_none=True)
    return found


def measure_memory(contender: Contender) -> int:
    """MiB that a step needs at its peak, beyond what was held before it."""
    if contender.setting.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.step()
        return (torch.cuda.max_memory_allocated() - before) >> 20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before_mib = resident_mib("VmRSS")
    contender.step()
    return resident_mib("VmHWM") - before_mib


def resident_mib(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) >> 10


def profile_step(contender: Contender) -> list[dict[str, object]]:
    """The five kinds of work that take the most of a step of ours."""
    is_cuda = contender.setting.device.type == "cuda"
    activity = ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        contender.step()

    def cost(event: Any) -> float:
        return float(event.self_device_time_total if is_cuda else event.self_cpu_time_total)

    events = sorted(profiler.key_averages(), key=cost, reverse=True)
    total = sum(map(cost, events))
    return [{"what": e.key[:80], "share": round(cost(e) / total, 3)} for e in events[:5]]


def compare(setting: Setting, rounds: int) -> dict[str, object]:
    contenders = {
        "ours": make_ours(setting),
        "transformers": make_transformers(setting),
        "plain": make_plain(setting),
    }
    agreement = check_agreement(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(WARMUP_ROUNDS + rounds):
        for name, contender in contenders.items():
            taken = contender.step()
            if number >= WARMUP_ROUNDS:
                seconds[name].append(taken)
    peak = peak_flops(setting.device)
    sides: dict[str, dict[str, object]] = {}
    for name, contender in contenders.items():
        speed = setting.tokens / statistics.median(seconds[name])
        sides[name] = {
            "tokens_per_sec": round(speed),
            "mfu_llmc": peak and round(speed * setting.shape.flops_per_token / peak, 3),
            "mfu_palm": peak and round(speed * setting.shape.flops_per_token_palm / peak, 3),
            "peak_mib_of_a_step": measure_memory(contender),
            "step_s": [round(s, 4) for s in seconds[name]],
            **agreement[name],
        }
    best = min(statistics.median(seconds[name]) for name in ("transformers", "plain"))
    return {
        "peak_bf16_flops": peak,
        "ratio_to_the_better": round(best / statistics.median(seconds["ours"]), 3),
        "sides": sides,
        "largest_costs_of_ours": profile_step(contenders["ours"]),
    }


def time_first_steps(arguments: list[str]) -> dict[str, object]:
    """Seconds from the start of a process to the end of its first update."""

    def measure(*options: str, cache: str) -> float:
        started = perf_counter()
        subprocess.run(
            [sys.executable, __file__, *arguments, *options, "--one-step"],
            check=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache},
        )
        return round(perf_counter() - started, 1)

    with tempfile.TemporaryDirectory() as cache:
        return {
            "eager_s": measure("--no-compile", cache=cache),
            "compiled_cold_s": measure("--compile", cache=cache),
            "compiled_warm_s": measure("--compile", cache=cache),
        }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=list(MODELS), default="small")
    parser.add_argument("--rows", type=int, help="sequences of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--first-step", action="store_true")
    parser.add_argument("--one-step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        torch.set_float32_matmul_precision("high")
    if arguments.first_step:
        found = time_first_steps([option for option in argv if option != "--first-step"])
        record(arguments.device, f"python bench/train_step.py {' '.join(argv)}", found)
        return
    with join_ranks(arguments.device) as ranks:
        setting = make_setting(arguments, ranks)
        if arguments.one_step:
            make_ours(setting).step()
            return
        found = compare(setting, arguments.rounds)
    if ranks.is_first:
        is_alone = ranks.world_size == 1
        start = (
            "python" if is_alone else f"torchrun --standalone --nproc-per-node {ranks.world_size}"
        )
        record(arguments.device, f"{start} bench/train_step.py {' '.join(argv)}", found)


def record(device: str, command: str, found: dict[str, object]) -> None:
    is_cuda = device == "cuda"
    machine = torch.cuda.get_device_name() if is_cuda else f"{os.cpu_count()} cores"
    result = {"on": machine, "torch": torch.__version__, **found}
    print(json.dumps(result, indent=2))
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[command.strip()] = result
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
