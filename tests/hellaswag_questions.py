"""Questions in the published form of HellaSwag, and a server that has them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from training.hellaswag_source import Published

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


def as_jsonl(questions: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(question).encode() + b"\n" for question in questions)


class Server:
    """Answers each request with the next of `faults`, then with `body`."""

    def __init__(self, body: bytes, url: str) -> None:
        self.body = body
        self.url = url
        self.requests = 0
        self.faults: list[str] = []

    def published(self, *, examples: int, sha256: str | None = None) -> Published:
        digest = sha256 or hashlib.sha256(self.body).hexdigest()
        return Published(url=self.url, sha256=digest, examples=examples)


@contextmanager
def serve(body: bytes) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests += 1
            fault = server.faults.pop(0) if server.faults else ""
            if fault == "503":
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.body)))
            self.end_headers()
            self.wfile.write(server.body[: len(server.body) // 2 if fault == "cut" else None])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(body, f"http://127.0.0.1:{http.server_port}/hellaswag_val.jsonl")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
