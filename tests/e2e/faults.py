"""What can be made to go wrong in the cloud, one `Fault` each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NO_CAPACITY = "instance-operations/launch/insufficient-capacity"


@dataclass
class Fault:
    """Strikes `times` times (None: always) when its operation, region and type are asked for.

    With a `status` the API answers with that error, before it does anything or, where
    `although_done`, after it. Without one the launch succeeds, and it is the VM that is bad:
    it stays booting (`hang`), is active but unreachable (`no_ssh`), or its GPUs are not what
    its type promises (`defect`: a Gpus field of `nvidia_smi.py` each).
    """

    operation: str  # launch, terminate, instances, instance-types, ssh-keys; * is any
    status: int | None = None
    code: str = "global/injected"
    message: str = "injected by a test"
    times: int | None = 1
    region: str | None = None
    name: str | None = None  # how the VM's begins
    instance_type: str | None = None
    although_done: bool = False
    hang: bool = False
    no_ssh: bool = False
    defect: dict[str, Any] = field(default_factory=dict)

    def concerns(self, operation: str, body: dict[str, Any], names: Sequence[str]) -> bool:
        return (
            self.times != 0
            and self.operation in (operation, "*")
            and self.region in (None, body.get("region_name"))
            and (self.name is None or any(n.startswith(self.name) for n in names))
            and self.instance_type in (None, body.get("instance_type_name"))
        )


def take_fault(
    faults: list[Fault], operation: str, body: dict[str, Any], names: Sequence[str]
) -> Fault | None:
    """The first fault that concerns this request, counted down. `names`: of its VMs."""
    for fault in faults:
        if fault.concerns(operation, body, names):
            if fault.times is not None:
                fault.times -= 1
            return fault
    return None
