"""A bill put right by the laptop, which may know what no node could: when its machine was gone."""

from msgspec.structs import replace

from training.layout import GOING_DOWN, BillLine


def correct_going_down(bill: tuple[BillLine, ...], seconds: float) -> tuple[BillLine, ...]:
    """The bill with the time that the machines of the last life really took to go down.

    `seconds` from its last heartbeat until they were gone; the node itself told a flat time
    ahead, or nothing where it had no last word. Less than none, as clocks differ, is none. A bill
    without a line, of a run that never had a machine, stays so.
    """
    if not bill:
        return bill
    last = bill[-1]
    down = replace(last, phase=GOING_DOWN, seconds=round(max(0.0, seconds), 3))
    told = [line for line in bill if (line.life, line.phase) != (last.life, GOING_DOWN)]
    return (*told, down)
