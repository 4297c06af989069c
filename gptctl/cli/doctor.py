"""`gptctl doctor`: is everything there that a launch needs?"""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import cast

import typer

from gptctl.backends import ANY, LOCAL, parse_clouds
from gptctl.backends.rented import RentedBackend
from gptctl.cli.console import print_json
from gptctl.cli.options import JsonOption, StoreOption
from gptctl.cli.session import Session, open_session, utc_now
from gptctl.doctor import Finding, examine_clouds, examine_machine, examine_store
from gptctl.errors import BackendError
from gptctl.monitor import watch
from gptctl.runs import RunView
from training.storage import open_store


def doctor(store: StoreOption = None, json: JsonOption = False) -> None:
    """Look for what would keep a launch from working; say what mends it."""
    session = open_session(store)
    findings = []
    for finding in _examine(session):
        findings.append(finding)
        if not json:
            _print(finding)
    if json:
        print_json(findings)
    if any(finding.verdict == "FAIL" for finding in findings):
        raise typer.Exit(BackendError.exit_code)


def _examine(session: Session) -> Iterator[Finding]:
    yield from examine_machine(
        python=tuple(sys.version_info[:3]),
        gptctl=version("gptctl"),
        node_root=session.settings.node_root,
    )
    yield examine_store(session.store)
    chosen = parse_clouds(session.settings.cloud) if session.settings.cloud else ()
    yield from examine_clouds(
        lambda: cast(RentedBackend, session.backend(ANY)),
        wanted=tuple(cloud for cloud in chosen if cloud not in (LOCAL, ANY)),
        launched=session.launched,
        look=lambda run_id, url: _look(session, run_id, url),
        today=utc_now().date(),
    )


def _look(session: Session, run_id: str, url: str) -> RunView:
    """At a run that may be in another store than this command was given."""
    return watch(
        run_id,
        store=open_store(url),
        backend=session.backend(ANY),
        clock=utc_now,
        launched=session.launched,
    )()


def _print(finding: Finding) -> None:
    """One line, and one more for what mends it: as it comes, as some checks take seconds."""
    sys.stdout.write(f"{finding.verdict:<8} {finding.subject}: {finding.text}\n")
    if finding.mend:
        sys.stdout.write(f"{'':<8} mend it: {finding.mend}\n")
    sys.stdout.flush()
