"""`python -m gptctl` is `gptctl`."""

from gptctl.cli import run

if __name__ == "__main__":
    run()
