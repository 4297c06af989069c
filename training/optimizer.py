"""AdamW as the reference has it, or Muon for the hidden matrices beside it.

With `train.shard_optimizer` a rank updates its share of the parameters alone (ZeRO-1) and
then tells the ranks of its node what they became.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from training.config import TrainConfig
from training.distributed import ALONE, Ranks
from training.model import GPT
from training.shares import share_out

STEP = "step"
"""AdamW counts its steps for each parameter, in a tensor of one number."""
QUANTITIES: dict[type[Optimizer], tuple[str, ...]] = {
    AdamW: (STEP, "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}
"""What each keeps of a parameter: of its shape, but for STEP."""


class Optimizers:
    """One or two torch optimizers that step together, with state addressed by parameter name."""

    def __init__(self, model: GPT, train: TrainConfig, ranks: Ranks = ALONE) -> None:
        self._names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        sizes = {name: p.numel() for p, name in self._names.items()}
        self.owners = share_out(sizes, ranks.local_world_size)
        """Parameter → the local rank that saves it, and updates it where that is shared out."""
        self._local_rank = ranks.local_rank
        self._node = ranks.node if train.shard_optimizer else None
        self._is_muon = train.optimizer == "muon"
        mine = [p for p, name in self._names.items() if self.updates(name)]
        hidden = [p for p in mine if self._kind(p) is Muon]
        # Matrices decay, biases and layer norms do not (GPT-2's and llm.c's rule).
        matrices = [p for p in mine if self._kind(p) is AdamW and p.dim() == 2]
        vectors = [p for p in mine if p.dim() != 2]
        self._all: list[tuple[Optimizer, float]] = []
        if self._is_muon:
            # As a group: it may be empty in a share, as a bare list must not be.
            muon = Muon([{"params": hidden}], lr=train.muon_lr, weight_decay=train.weight_decay)
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

    def updates(self, name: str) -> bool:
        """Whether this rank updates the parameter and keeps its state."""
        return self._node is None or self.owners[name] == self._local_rank

    def _kind(self, parameter: Tensor) -> type[Optimizer]:
        is_hidden = parameter.dim() == 2 and self._names[parameter].startswith("h.")
        return Muon if self._is_muon and is_hidden else AdamW

    def step(self, lr_factor: float) -> None:
        """Update the parameters, each optimizer at its peak × `lr_factor`.

        Sharded, a collective of the node's ranks: all of them call it.
        """
        for optimizer, peak in self._all:
            for group in optimizer.param_groups:
                group["lr"] = peak * lr_factor
            optimizer.step()
        for parameter in self._names:
            parameter.grad = None
        self._tell_the_node()

    def _tell_the_node(self) -> None:
        if self._node is None:
            return
        works = [
            dist.broadcast(p.detach(), group=self._node, group_src=self.owners[name], async_op=True)
            for p, name in self._names.items()
        ]
        for work in works:
            work.wait()

    def state_shapes(self) -> dict[str, torch.Size]:
        """`state()`'s names and shapes once all ranks have stepped, of all parameters."""
        return {
            f"{name}/{quantity}": torch.Size() if quantity == STEP else parameter.shape
            for parameter, name in self._names.items()
            for quantity in QUANTITIES[self._kind(parameter)]
        }

    def state_bytes(self) -> int:
        """What this rank's state will take on its device once it has stepped (fp32)."""
        shapes = self.state_shapes().items()
        return sum(4 * shape.numel() for key, shape in shapes if self.updates(parameter_of(key)))

    def state(self) -> dict[str, Tensor]:
        """`{"<parameter>/<quantity>": tensor}`: the tensors themselves, not copies.

        Only of the parameters that this rank updates, and empty before the first step.
        """
        return {
            f"{name}/{key}": value
            for optimizer, _ in self._all
            for _, parameter, name in self._parameters(optimizer)
            for key, value in optimizer.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, which has all that this rank updates, or nothing."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            by_name.setdefault(name, {})[quantity] = value
        for optimizer, _ in self._all:
            loaded = {
                index: by_name[name]
                for index, _, name in self._parameters(optimizer)
                if name in by_name
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": loaded, "param_groups": groups})

    def _parameters(self, optimizer: Optimizer) -> Iterator[tuple[int, Tensor, str]]:
        """(torch's index, parameter, name), in the order in which torch numbers its state."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            yield index, parameter, self._names[parameter]


def parameter_of(key: str) -> str:
    """The parameter whose state is under `key`."""
    return key.rpartition("/")[0]


def clip_gradients(model: GPT, limit: float) -> Tensor:
    """The gradient's 2-norm, before it is scaled down to `limit` (0: it is left as it is)."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"))
