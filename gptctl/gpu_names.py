"""One name for each GPU, whatever a cloud, a driver or SkyPilot calls it.

Ours are SkyPilot's where those leave nothing open: `A100-80GB`, `H100`, `L4`. Where they do, ours
say it: SkyPilot's `A100` is an `A100-40GB`, and its `H100` may be any of three cards, of which
those that are slower than the one on an SXM board are `H100-PCIe` and `H100-NVL`.
"""

import re

from msgspec import Struct

from training.layout import Offer

_SPELLINGS = {
    **dict.fromkeys(("A100", "H100", "H200", "B200", "B300", "GH200", "GB200", "GB300"), ()),
    **dict.fromkeys(("V100", "T4", "A10", "A10G", "A30", "A40", "L4", "L40", "L40S"), ()),
    "A6000": ("rtxa6000",),
    "RTX6000": (),
    "RTX6000-Ada": ("rtx6000adageneration",),
    "RTXPRO6000": ("rtxpro6000s", "rtxpro6000blackwellserveredition"),
    **dict.fromkeys(("RTX3090", "RTX4090", "RTX5090"), ()),
}
"""Ours, and other ways to write them: small letters, no separators, without `_MORE`."""
_FAMILIES = {
    spelling: name
    for name, others in _SPELLINGS.items()
    for spelling in (name.replace("-", "").lower(), *others)
}
_MORE = re.compile(
    r"nvidia|tesla|geforce|quadro|(?P<memory>\d+)gb?|sxm\d?|pcie?|nvl|nvlink|hbm\d\w?|mega"
)
"""Words beside the family: who made it, its memory, how it is plugged in."""
_FORM = re.compile(r"(?P<NVL>nvl(?!ink))|(?P<SXM>sxm)|(?P<PCIe>pci)")
_SLOWER_FORMS = {"A100": ("PCIe",), "H100": ("PCIe", "NVL"), "H200": ("NVL",)}
"""Cards that have less power or memory bandwidth than the SXM module: NVIDIA's data sheets."""
_MEMORIES = {"A100": {40: "-40GB", 80: "-80GB"}, "V100": {16: "", 32: "-32GB"}}
"""Of GPUs that come with one or the other, in GB; the first is meant where none is said."""

_UNSAID_FORM = {
    ("runpod", "A100"): "PCIe",
    ("runpod", "H100"): "PCIe",
    ("shadeform", "A100"): "PCIe",
    ("shadeform", "H100"): "PCIe",
}
"""What a name without a form is there: SkyPilot renames RunPod's `H100-PCIe` to `H100`
(`fetch_runpod.py`), and Shadeform says `sxm` where it knows of it."""
_UNSAID_MEMORY = {("seeweb", "A100"): 80, ("cudo", "A100"): 80}
"""`fetch_seeweb.py` and `cudo_utils.py` of SkyPilot 0.14.1."""
_FORM_BY_TYPE = {
    ("azure", "A100"): (re.compile(r"_NC\d"), "PCIe"),
    ("azure", "H100"): (re.compile(r"_NC\d"), "NVL"),
}
"""https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated, the NC family."""

GPU_NAMES = tuple(
    f"{family}{memory}{form}"
    for family in _SPELLINGS
    for memory in _MEMORIES.get(family, {0: ""}).values()
    for form in ("", *(f"-{form}" for form in _SLOWER_FORMS.get(family, ())))
)
"""Every name of ours."""


class _Parts(Struct, frozen=True):
    """A name taken apart; None: it does not say."""

    family: str
    memory_gb: int | None
    form: str | None


def normalize_gpu(name: str, *, cloud: str = "", instance_type: str = "") -> str | None:
    """Our name of it; None for what is no GPU that we know, or a slice of one.

    What the name leaves open is told by the instance type, then by what that cloud calls so.
    Ours stay as they are, on any machine that has such a GPU.
    """
    parts = _parse(name)
    if parts is None:
        return None
    family, place = parts.family, (cloud, parts.family)
    form = parts.form or _find_form(instance_type)
    if form is None and place in _FORM_BY_TYPE:
        pattern, its_form = _FORM_BY_TYPE[place]
        form = its_form if pattern.search(instance_type) else None
    form = form or _UNSAID_FORM.get(place)
    memories = _MEMORIES.get(family, {})
    memory = parts.memory_gb or _UNSAID_MEMORY.get(place) or next(iter(memories), 0)
    if memories and memory not in memories:
        return None
    return "".join(
        (
            family,
            memories.get(memory, ""),
            f"-{form}" if form in _SLOWER_FORMS.get(family, ()) else "",
        )
    )


def gpu_of(offer: Offer) -> str | None:
    """Our name of the GPU of an offer, wherever the offer comes from; None: no GPU, or unknown."""
    return normalize_gpu(offer.gpu, cloud=offer.cloud, instance_type=offer.instance_type)


def is_asked_for(asked: str, gpu: str) -> bool:
    """Whether `gpu`, a name of ours, is what a user means by `asked`.

    A word that states no form takes any, as with SkyPilot: `H100` is also an `H100-PCIe`, while
    `H100-SXM` is not.
    """
    ours, parts = normalize_gpu(asked), _parse(asked)
    if ours is None or parts is None or parts.form is not None:
        return ours == gpu
    return gpu in (ours, *(f"{ours}-{form}" for form in _SLOWER_FORMS.get(parts.family, ())))


def _parse(name: str) -> _Parts | None:
    words = re.findall(r"[a-z0-9]+", name.lower())
    more = [match for word in words if (match := _MORE.fullmatch(word))]
    rest = "".join(word for word in words if not _MORE.fullmatch(word))
    if rest not in _FAMILIES:
        return None
    memory = next((int(match["memory"]) for match in more if match["memory"]), None)
    return _Parts(_FAMILIES[rest], memory, _find_form(name))


def _find_form(text: str) -> str | None:
    match = _FORM.search(text.lower())
    return match.lastgroup if match else None
