"""Parquet files to verified shards: our pipeline, the reference design, and gigatoken alone.

    python bench/tokenizing.py [--rounds N]

The text is source code and documentation of the standard library and the installed packages, in
pieces of a web page's size and in an order by hash, without the indentation that web pages have
not either; what is missing to `TEXT_BYTES` is the same with other vowels, so that no word cache
has seen it. It lies in parquet files as FineWeb's (snappy, a thousand rows a group). Each
contestant is a process of its own, timed from when it has loaded its modules:

- ours: `prepare`, from the files to shards on the disk, hashed and cross-checked;
- the reference design (build-nanogpt, llm.c): a process a core that maps tiktoken over documents
  one by one, `imap` in chunks of 16, into a numpy buffer, which is written when it is full. Its
  shards must be ours, byte for byte;
- gigatoken alone: the same text, in memory already, to ids in memory, on all cores.

Then two simulations on the real pipeline, whose source gives 200 MB/s: how long it takes to the
first training shard of 100 M tokens, and how long a consumer at the pace of 8×A100 waits.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import awkward
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken

from training.config import DataConfig
from training.encode import GigatokenEncoder, usable_workers
from training.layout import Shard, read_dataset, sha256_file
from training.prepare import prepare
from training.shards import Tokens, write_shard
from training.tokenizer import open_tokenizer

RESULT = Path(__file__).parent / "results" / "tokenizing.json"
TEXT_BYTES, FILE_BYTES, PIECE_CHARACTERS = 240 * 10**6, 48 * 10**6, 4000
SHARD_TOKENS = 10**7
SOURCE_BYTES_PER_S = 200e6
CONSUMER_TOKENS_PER_S = 1.75e6
CONSUMED_SHARDS = 8
VOWELS = "aeiou"
INDENTATION = re.compile(r"\n[ \t]+")


@dataclass
class Files:
    """The files over and over, `times` in all, no faster than `bytes_per_s`."""

    paths: list[Path]
    times: int = 1
    bytes_per_s: float = float("inf")
    revision: str = "bench"
    column: str = "text"

    @property
    def files(self) -> list[str]:
        return [path.name for path in self.paths] * self.times

    def open(self, first: int) -> Generator[tuple[int, Path], None, None]:
        started, given = time.perf_counter(), 0
        for index, path in list(enumerate(self.paths * self.times))[first:]:
            given += path.stat().st_size
            wait = given / self.bytes_per_s - (time.perf_counter() - started)
            time.sleep(max(0.0, wait))
            yield index, path


def find_text() -> Iterator[str]:
    """Pieces of every file's text, the files in an order by hash."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    paths = {p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".md")}
    seen = set()
    for path in sorted(paths, key=lambda p: sha256(f"{p.parent.name}/{p.name}".encode()).digest()):
        try:
            text = INDENTATION.sub("\n", path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if hash(text) not in seen:
            seen.add(hash(text))
            for at in range(0, len(text), PIECE_CHARACTERS):
                yield text[at : at + PIECE_CHARACTERS]


def make_files(folder: Path) -> tuple[int, list[Path]]:
    """(bytes of text, parquet files that hold it)."""
    folder.mkdir()
    paths: list[Path] = []
    pieces: list[str] = []
    size = total = turn = 0
    while total < TEXT_BYTES:
        vowels = str.maketrans(VOWELS, VOWELS[turn:] + VOWELS[:turn])
        for piece in find_text():
            pieces.append(piece.translate(vowels) if turn else piece)
            size += len(pieces[-1].encode())
            if size >= FILE_BYTES:
                paths.append(folder / f"{len(paths):03d}.parquet")
                table = pa.table({"text": pieces})
                pq.write_table(table, paths[-1], row_group_size=1000, compression="snappy")
                total, size, pieces = total + size, 0, []
                if total >= TEXT_BYTES:
                    break
        turn = (turn + 1) % len(VOWELS)
    return total, paths


def read_texts(paths: list[Path]) -> Iterator[pa.Array]:
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
            yield batch.column(0)


def run_ours(source: Files, out: Path, shard_tokens: int) -> None:
    data = DataConfig(source="bench", tokenizer="gpt2", shard_tokens=shard_tokens)
    prepare(data, out, block_size=1024, on_shard=lambda _: None, source=source)


def tokenize(document: str) -> Tokens:
    encoding = tiktoken.get_encoding("gpt2")
    tokens = [encoding.eot_token]
    tokens.extend(encoding.encode_ordinary(document))
    return np.array(tokens).astype(np.uint16)


def run_reference(paths: list[Path], out: Path) -> None:
    out.mkdir()
    documents = (text for batch in read_texts(paths) for text in batch.to_pylist())
    buffer, filled, index = np.empty(SHARD_TOKENS, dtype=np.uint16), 0, 0
    with multiprocessing.Pool(usable_workers()) as pool:
        for tokens in pool.imap(tokenize, documents, chunksize=16):
            while len(tokens):
                taken = tokens[: SHARD_TOKENS - filled]
                buffer[filled : filled + len(taken)] = taken
                filled, tokens = filled + len(taken), tokens[len(taken) :]
                if filled == SHARD_TOKENS:
                    write_shard(out / f"{index:06d}.bin", buffer, split="train")
                    filled, index = 0, index + 1
        if filled:
            write_shard(out / f"{index:06d}.bin", buffer[:filled], split="train")


def run_gigatoken(paths: list[Path]) -> float:
    tokenizer = GigatokenEncoder(open_tokenizer("gpt2"), workers=1).tokenizer()
    texts = [awkward.from_arrow(a.cast(pa.large_string())) for a in read_texts(paths)]
    started = time.perf_counter()
    for batch in texts:
        tokenizer.encode_batch(batch, parallel=True)
    return time.perf_counter() - started


def wait_for(folder: Path, count: int) -> tuple[Shard, ...]:
    while (dataset := read_dataset(folder)) is None or len(dataset.shards) < count:
        time.sleep(0.01)
    return dataset.shards


def prepare_beside(paths: list[Path], out: Path, shard_tokens: int) -> None:
    """Begin to prepare from a source of SOURCE_BYTES_PER_S that does not end."""
    source = Files(paths, times=1000, bytes_per_s=SOURCE_BYTES_PER_S)
    threading.Thread(target=run_ours, args=(source, out, shard_tokens), daemon=True).start()


def simulate_training(paths: list[Path], out: Path) -> dict[str, float]:
    """A consumer at 8×A100's pace that begins on the validation and the first training shard."""
    prepare_beside(paths, out, SHARD_TOKENS)
    wait_for(out, 2)
    begun = time.perf_counter()
    waited = 0.0
    for index in range(1, 1 + CONSUMED_SHARDS):
        asked = time.perf_counter()
        shard = wait_for(out, index + 1)[index]
        waited += time.perf_counter() - asked
        time.sleep(shard.tokens / CONSUMER_TOKENS_PER_S)
    seconds = time.perf_counter() - begun
    lead = len(wait_for(out, 1)) - 1 - CONSUMED_SHARDS
    return {"seconds": seconds, "waited_s": waited, "lead_tokens": lead * SHARD_TOKENS}


def run_contestant(name: str, paths: list[Path], out: Path) -> dict[str, float]:
    started = time.perf_counter()
    if name == "training":
        return simulate_training(paths, out)
    if name == "gigatoken":
        return {"seconds": run_gigatoken(paths)}
    if name == "ours":
        run_ours(Files(paths), out, SHARD_TOKENS)
    elif name == "reference":
        run_reference(paths, out)
    elif name == "start":  # the validation shard comes before the first one to train on
        prepare_beside(paths, out, 10**8)
        wait_for(out, 2)
    return {"seconds": time.perf_counter() - started}


def peak_mib() -> float:
    """Of this process alone: what getrusage tells begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def time_contestant(name: str, folder: Path, out: Path) -> dict[str, float]:
    """In a process of its own, for its memory's sake and a cold start."""
    command = [sys.executable, __file__, "--contestant", name, str(folder), str(out)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(ran.stdout)
    print(name, json.dumps(result), flush=True)
    return result


def shard_hashes(folder: Path) -> list[str]:
    """In the order of their numbers."""
    paths = sorted(folder.glob("*.bin"), key=lambda path: path.stem[-6:])
    return [sha256_file(path) for path in paths]


def measure(folder: Path, rounds: int) -> dict[str, object]:
    text_bytes, paths = make_files(folder / "text")
    seconds: dict[str, list[float]] = {"gigatoken": [], "ours": [], "reference": []}
    peak_mib, tokens = 0.0, 0
    for number in range(rounds):
        for name in seconds if number % 2 else reversed(seconds):
            result = time_contestant(name, folder / "text", folder / f"{name}-{number}")
            seconds[name].append(result["seconds"])
            peak_mib = max(peak_mib, result["peak_mib"] if name == "ours" else 0)
        ours, reference = (folder / f"{name}-{number}" for name in ("ours", "reference"))
        if shard_hashes(ours) != shard_hashes(reference):
            raise SystemExit("the shards of the two differ")
        tokens = sum(shard.tokens for shard in wait_for(ours, 1))
        shutil.rmtree(ours)
        shutil.rmtree(reference)
    fetched = sum(path.stat().st_size for path in paths)
    start = time_contestant("start", folder / "text", folder / "start")
    training = time_contestant("training", folder / "text", folder / "training")
    speed = {name: text_bytes / 1e6 / statistics.median(s) for name, s in seconds.items()}
    needed = CONSUMER_TOKENS_PER_S * text_bytes / tokens / 1e6
    return {
        "command": f"python bench/tokenizing.py --rounds {rounds}",
        "cores": usable_workers(),
        "text_mb": round(text_bytes / 1e6, 1),
        "tokens": tokens,
        "parquet_mb": round(fetched / 1e6, 1),
        "mb_per_s": {name: round(value, 1) for name, value in speed.items()},
        "times_the_reference_by_round": ratios(seconds["reference"], seconds["ours"]),
        "of_gigatoken_alone_by_round": ratios(seconds["gigatoken"], seconds["ours"]),
        "peak_mib": round(peak_mib),
        "first_training_shard_of_100m_tokens_s": round(start["seconds"], 1),
        "consumer_waits_share": round(training["waited_s"] / training["seconds"], 5),
        "consumer_trained_s": round(training["seconds"], 1),
        "lead_at_its_end_mtokens": round(training["lead_tokens"] / 1e6),
        "consumer_needs_text_mb_per_s": round(needed, 2),
        "consumer_needs_parquet_mb_per_s": round(needed * fetched / text_bytes, 2),
        "consumer_needs_cores": round(needed * usable_workers() / speed["ours"], 2),
    }


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    return [round(a / b, 2) for a, b in zip(slow, fast, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        name, folder, out = options.contestant
        result = run_contestant(name, sorted(Path(folder).glob("*.parquet")), Path(out))
        print(json.dumps({**result, "peak_mib": peak_mib()}), flush=True)
        os._exit(0)  # a simulated source never ends
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), options.rounds)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(measured, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
