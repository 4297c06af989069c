"""A row of a catalogue; and on GCP, the machine that carries a GPU.

GCP prices GPUs and machines apart, so its catalogue has a row for each: a bill is their sum.
"""

from collections.abc import Iterator
from decimal import Decimal

from msgspec import Struct
from msgspec.structs import replace

GCP_HOSTS = {
    "A100": "a2-highgpu-{}g",
    "A100-80GB": "a2-ultragpu-{}g",
    "H100": "a3-highgpu-{}g",
    "H100-MEGA": "a3-megagpu-{}g",
    "H200": "a3-ultragpu-{}g",
    "B200": "a4-highgpu-{}g",
}
"""The one kind of machine that carries each: https://cloud.google.com/compute/docs/gpus"""
_GPU_FAMILIES = ("a2-", "a3-", "a4-", "g2-", "g4-")


class Row(Struct, frozen=True, kw_only=True):
    """`gpu_count` 0: no GPU. A price is per hour; None: not to be had at one."""

    cloud: str
    instance_type: str
    gpu: str
    gpu_count: int
    vcpus: float
    region: str
    price: Decimal | None
    spot_price: Decimal | None


def add_hosts(rows: list[Row]) -> Iterator[Row]:
    """GCP's GPUs as whole machines, at both prices together; other rows as they are.

    A GPU whose machine is not among `rows` is left out, as what it would cost is not known.
    """
    hosts = {
        (row.instance_type, row.region): row
        for row in rows
        if row.cloud == "gcp" and row.instance_type.startswith(_GPU_FAMILIES)
    }
    for row in rows:
        if row.cloud != "gcp":
            yield row
        elif row.gpu:
            kind = GCP_HOSTS.get(row.gpu, "").format(row.gpu_count)
            if (host := hosts.get((kind, row.region))) is not None:
                yield replace(
                    row,
                    instance_type=kind,
                    vcpus=host.vcpus,
                    price=_sum(row.price, host.price),
                    spot_price=_sum(row.spot_price, host.spot_price),
                )
        elif (row.instance_type, row.region) not in hosts:
            yield row


def _sum(first: Decimal | None, second: Decimal | None) -> Decimal | None:
    return None if first is None or second is None else first + second
