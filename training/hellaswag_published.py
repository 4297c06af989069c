"""Where HellaSwag's validation set was published, and what it was then."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A parquet file of questions in a data set repository of the Hub."""

    repo: str
    commit: str
    path: str
    sha256: str
    examples: int


VALIDATION = Published(
    repo="Rowan/hellaswag",
    commit="218ec52e09a7e7462a5400043bb9a69a41d06b76",
    path="data/validation-00000-of-00001.parquet",
    # Of this file at this commit, as two who fetched it, apart from each other, wrote it down.
    sha256="899813071e1e95efafec90f856e1987d2150fa4d020fc005df6962c259f660cd",
    examples=10_042,
)
