"""Which of the machines that a run might have got it did get, told from what is found on it (pure).

SkyPilot tells the node its cloud and region, the driver its GPUs; the price is the offer's.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from training.layout import Offer

NO_REGION = ("", "-")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where SkyPilot says that a node stands; fields that are not of interest are passed over."""

    cloud: str = ""
    region: str | None = None


def parse_place(text: str) -> Place:
    """Nowhere in particular where `text` is not what SkyPilot writes."""
    try:
        return msgspec.json.decode(text, type=Place)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Place()


def choose_offer(offers: Sequence[Offer], place: Place, gpus: Sequence[str]) -> Offer:
    """The offer that was taken; the dearest that it might be, as a bill must not be too low.

    `gpus` are the driver's names of the GPUs found. `offers` must not be empty.
    """
    here = [offer for offer in offers if _is_at(offer, place)]
    if here:
        counted = _narrow(here, lambda offer: offer.gpu_count == len(gpus))
        best = max(_likeness(offer.gpu, gpus) for offer in counted)
        here = _narrow(counted, lambda offer: _likeness(offer.gpu, gpus) == best)
    return max(here or offers, key=lambda offer: offer.price_per_hour)


def _is_at(offer: Offer, place: Place) -> bool:
    is_region = offer.region in NO_REGION or _same(offer.region, place.region or "")
    return is_region and _same(offer.cloud, place.cloud)


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _narrow(offers: list[Offer], is_it: Callable[[Offer], bool]) -> list[Offer]:
    return [offer for offer in offers if is_it(offer)] or offers


def _likeness(catalogue_name: str, gpus: Sequence[str]) -> tuple[int, int]:
    """How well `A100-80GB` describes `NVIDIA A100-SXM4-80GB`: more is better.

    The model must be there; of the rest, what is found counts first, then what is not.
    """
    if not gpus:
        return (0, 0)
    words = re.findall(r"[a-z0-9]+", gpus[0].casefold())
    # `RTX6000` in a catalogue is `Quadro RTX 6000` to the driver.
    known = {*words, *(first + second for first, second in pairwise(words))}
    wanted = re.findall(r"[a-z0-9]+", catalogue_name.casefold())
    found = sum(word in known for word in wanted)
    if not wanted or wanted[0] not in known:
        return (-1, 0)
    return (found, found - len(wanted))
