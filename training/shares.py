"""Which rank of a node owns which parameter: it saves it, and under ZeRO-1 it alone updates it.

The partition of optimizer states over data-parallel ranks is ZeRO's first stage (Rajbhandari
et al. 2020, https://arxiv.org/abs/1910.02054), by whole parameters instead of slices. Nodes
are replicas of each other: they share out the same way.
"""

from collections.abc import Mapping


def share_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Parameter → the local rank that owns it, from each parameter's size in any unit.

    The largest is given first, always to the rank that owns least: no rank owns more than the
    average and one parameter. The same on every rank that asks; with few parameters a rank may
    own none.
    """
    owned = [0] * ranks
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner = owned.index(min(owned))
        owned[owner] += sizes[name]
        owners[name] = owner
    return owners
