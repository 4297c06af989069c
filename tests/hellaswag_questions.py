"""Questions in the published form of HellaSwag, and a Hub that has them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hub_server import HubServer
from training.hellaswag_published import Published
from training.layout import sha256_file

REPO = "owner/questions"
PATH = "data/validation-00000-of-00001.parquet"

_SCENES = [
    ("Baking bread", "A man weighs flour into a bowl.", "he"),
    ("Home and Garden", "[header] How to dry herbs [title] Cut them early in the day.", ""),
    (
        "Rowing",
        "Two boats wait at the start. A flag is raised, and the crews lean forward.",
        "they",
    ),
    ("Café", "The waiter — a señor of eighty — brings 3½ cups.", "the guests"),
]
_GOING_ON = [
    "puts the lid on, waits for ten minutes and looks at the clock.",
    "run.",
    "turns around!! and shows its owner what it can't do, over and over, until the rain stops.",
    "[step] Leaves that are dry to the touch can be crumbled by hand and kept in a jar.",
    "are shown from above, pulling hard,   with \"one-two\" called from behind.",
    "says: naïve.",
    "walks off with all of it, and nobody, not even the man who had paid, says a word about it.",
]  # fmt: skip


def make_questions(count: int) -> list[dict[str, Any]]:
    """`count` questions of our own, short and long; their labels go round."""
    questions = []
    for i in range(count):
        activity, ctx_a, ctx_b = _SCENES[i % len(_SCENES)]
        told = [_GOING_ON[(i + k) % len(_GOING_ON)].capitalize() for k in range(i % 6)]
        ctx_a = " ".join([ctx_a, *told])
        questions.append(
            {
                "ind": 24 + i,
                "activity_label": activity,
                "ctx_a": ctx_a,
                "ctx_b": ctx_b,
                "ctx": f"{ctx_a} {ctx_b}".rstrip(),
                "split": "val",
                "split_type": "indomain",
                "label": (i * 7 // 3) % 4,
                "endings": [_GOING_ON[(i + 2 * k) % len(_GOING_ON)] for k in range(4)],
                "source_id": f"made~{i}",
            }
        )
    return questions


def write_questions(path: Path, questions: list[dict[str, Any]]) -> Path:
    """As the Hub has them: parquet, labels as text, columns that do not count for the score."""
    rows = [{**question, "label": str(question["label"])} for question in questions]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def publish(hub: HubServer, file: Path, *, examples: int) -> Published:
    """`file` on the Hub, at a commit of its own."""
    commit = hub.commit(REPO, {PATH: file})
    return Published(
        repo=REPO, commit=commit, path=PATH, sha256=sha256_file(file), examples=examples
    )
