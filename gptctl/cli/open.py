"""`gptctl open`: a run's page in SkyPilot's dashboard."""

import os
import sys
import webbrowser

from gptctl.cli.options import RunArgument, StoreOption
from gptctl.cli.session import open_session


def open_page(run: RunArgument, store: StoreOption = None) -> None:
    """Open a run's page in SkyPilot's dashboard.

    Its address is printed, and opened in a browser where there is a display.
    """
    record, backend = open_session(store).rent(run)
    url = backend.dashboard_url(record.run_id)
    sys.stdout.write(url + "\n")
    sys.stdout.flush()
    if _has_display():
        webbrowser.open(url)


def _has_display() -> bool:
    """Elsewhere webbrowser would start one in the terminal."""
    return sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
