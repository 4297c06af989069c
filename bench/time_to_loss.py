"""Wall time to 1.88 nats per character on Shakespeare: the recipe beside nanoGPT's settings.

    python bench/time_to_loss.py TEXT [--rounds N]

TEXT is char-rnn's `tinyshakespeare.txt`; its last tenth is for validation. Both sides are
timed from the start of their process, interpreter and imports included. Ours is the whole of
`gptctl launch shakespeare`: plan, record, supervisor, shards, training, validation and upload,
until a validation loss of 1.88 or less stands in the store. The reference is timed to the end
of its 2000 steps. Rounds alternate; the ratio is that of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TARGET = 1.88
RESULT = Path(__file__).parent / "results" / "time_to_loss.json"


def time_reference(text: Path) -> tuple[float, float]:
    """(seconds to the end of training, final validation loss)."""
    started = time.perf_counter()
    program = [sys.executable, str(Path(__file__).with_name("nanogpt_cpu.py")), str(text)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "trained\n"
        seconds = time.perf_counter() - started
        return seconds, float(process.stdout.readline())


def time_ours(text: Path, folder: Path) -> tuple[float, float]:
    """(seconds until the store holds a loss of TARGET or less, final validation loss)."""
    store = folder / "store"
    command = [sys.executable, "-m", "gptctl", "launch", "shakespeare", "--data", str(text)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--store", str(store), "--yes", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_DATA_HOME": str(folder)},
    ) as process:
        seconds = None
        while seconds is None:
            time.sleep(0.05)
            if any(loss <= TARGET for loss in validation_losses(store)):
                seconds = time.perf_counter() - started
            elif process.poll() is not None:
                raise SystemExit(f"the recipe ended at {validation_losses(store)[-1:]}")
        output, _ = process.communicate()
    return seconds, float(json.loads(output)["val_loss"])


def validation_losses(store: Path) -> list[float]:
    lines = [
        json.loads(line)
        for path in store.glob("runs/*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line["val_loss"] for line in lines if "val_loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.text is None:
        print("time_to_loss: skipped; give it tinyshakespeare.txt: `make bench TEXT=PATH`")
        return
    rounds = []
    for _ in range(arguments.rounds):
        reference_s, reference_loss = time_reference(arguments.text)
        with tempfile.TemporaryDirectory() as folder:
            ours_s, ours_loss = time_ours(arguments.text, Path(folder))
        rounds.append(
            {
                "reference_s": round(reference_s, 1),
                "reference_final_val_loss": reference_loss,
                "ours_to_target_s": round(ours_s, 1),
                "ours_final_val_loss": round(ours_loss, 4),
            }
        )
        print(rounds[-1], flush=True)
    ratio = statistics.median(r["ours_to_target_s"] for r in rounds) / statistics.median(
        r["reference_s"] for r in rounds
    )
    result = {
        "command": f"python bench/time_to_loss.py tinyshakespeare.txt --rounds {arguments.rounds}",
        "target_val_loss": TARGET,
        "rounds": rounds,
        "ratio": round(ratio, 3),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    print(f"ours / reference = {ratio:.3f}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
