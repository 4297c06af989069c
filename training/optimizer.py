"""AdamW as the reference has it, or Muon for the hidden matrices beside it."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from training.config import TrainConfig
from training.model import GPT


class Optimizers:
    """One or two torch optimizers that step together, with state addressed by parameter name."""

    def __init__(self, model: GPT, train: TrainConfig) -> None:
        self._names = {p: name for name, p in model.named_parameters()}
        # Matrices decay, biases and layer norms do not (GPT-2's and llm.c's rule).
        matrices = [p for p in self._names if p.dim() == 2]
        vectors = [p for p in self._names if p.dim() != 2]
        self._all: list[tuple[Optimizer, float]] = []
        if train.optimizer == "muon":
            hidden = [p for p in matrices if self._names[p].startswith("h.")]
            matrices = [p for p in matrices if not self._names[p].startswith("h.")]
            muon = Muon(hidden, lr=train.muon_lr, weight_decay=train.weight_decay)
            self._all.append((muon, train.muon_lr))
        adamw = AdamW(
            [
                {"params": matrices, "weight_decay": train.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=train.max_lr,
            betas=(train.beta1, train.beta2),
            eps=train.eps,
            fused=True,
        )
        self._all.append((adamw, train.max_lr))
        self._max_lr = train.max_lr

    def step(self, lr_factor: float) -> float:
        """Update the parameters, each optimizer at its peak × `lr_factor`; AdamW's rate."""
        for optimizer, peak in self._all:
            for group in optimizer.param_groups:
                group["lr"] = peak * lr_factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self._max_lr * lr_factor

    def state(self) -> dict[str, Tensor]:
        """`{"<parameter>/<quantity>": tensor}`: the tensors themselves, not copies."""
        return {
            f"{name}/{key}": value
            for optimizer, _ in self._all
            for _, parameter, name in self._parameters(optimizer)
            for key, value in optimizer.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, quantity = key.rsplit("/", 1)
            by_name.setdefault(name, {})[quantity] = value
        for optimizer, _ in self._all:
            optimizer.load_state_dict(
                {
                    "state": {i: by_name[name] for i, _, name in self._parameters(optimizer)},
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )

    def _parameters(self, optimizer: Optimizer) -> Iterator[tuple[int, Tensor, str]]:
        """(torch's index, parameter, name), in the order in which torch numbers its state."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            yield index, parameter, self._names[parameter]


def clip_gradients(model: GPT, limit: float) -> Tensor:
    """The gradient's 2-norm, before it is scaled down to `limit` (0: it is left as it is)."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"))
