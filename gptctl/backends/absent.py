"""A backend that cannot be had here: the store still tells of the runs it has."""

from collections.abc import Iterator
from typing import NoReturn

from gptctl.backends import BackendState, Job, Tell, Wanted
from gptctl.errors import BackendError
from training.layout import Offer


class AbsentBackend:
    """`why` is raised by whatever needs the backend itself."""

    def __init__(self, why: BackendError) -> None:
        self._why = why

    def offers(self, wanted: Wanted) -> list[Offer]:
        self._refuse()

    def check(self, offers: list[Offer]) -> None:
        self._refuse()

    def describe(self, job: Job) -> str:
        self._refuse()

    def submit(self, job: Job, *, tell: Tell) -> Offer:
        self._refuse()

    def state(self, run_id: str) -> BackendState:
        self._refuse()

    def logs(self, run_id: str) -> Iterator[str]:
        yield from ()

    def follow_log(self, run_id: str, stage: str, offset: int) -> Iterator[bytes]:
        yield from ()

    def stop(self, run_id: str, *, tell: Tell) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BackendError(self._why.message, hint=self._why.hint)
