"""A loss curve in characters: readable without colour, and in a file."""

from gptctl.report import Curves, Point

_LOSS = "loss by step (nats per token); line: train, o: validation"


def draw_curve(curves: Curves, *, width: int, height: int) -> str:
    """At most `width` columns and `height` lines; an empty string with nothing to draw."""
    if not curves.can_be_drawn:
        return ""
    import plotext

    figure = plotext.figure
    figure.clear()  # plotext has one figure for the whole process
    figure.theme("clear")
    figure.plot_size(width, height)
    figure.legend(False)
    for points, marker in ((curves.train, "braille"), (curves.val, "o")):
        if points:
            signal = figure.signal(*_thin(points, width * 2), marker=marker)
            figure.draw(signal.lines(marker != "o"))
    return f"{_LOSS}\n{plotext.uncolorize(str(figure.build())).rstrip()}"


def _thin(points: tuple[Point, ...], most: int) -> tuple[list[int], list[float]]:
    """Steps and losses, averaged in groups so that no more than `most` are drawn."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return (
        [group[-1][0] for group in groups],
        [sum(loss for _, loss in group) / len(group) for group in groups],
    )
