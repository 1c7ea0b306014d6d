"""How long the shell thinks before it answers, beside what it must not do for that: import PyTorch."""

import subprocess
import sys

from harness import Race, measure

PEER = "python -c 'import torch'"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)


@measure("specialize-nb audit --help", peer=PEER, rounds=5)
def shell_help() -> Race:
    ours = lambda: run("-m", "specialize_nb", "audit", "--help")  # noqa: E731
    return Race(ours, lambda: run("-c", "import torch"), lambda mine, theirs: "no answers")


@measure("specialize-nb audit with a mistake", peer=PEER, rounds=5)
def shell_mistake() -> Race:
    ours = lambda: run("-m", "specialize_nb", "audit", "m.py:f", "--data", "digits", "--graphs", "wieghts")  # noqa: E731
    return Race(ours, lambda: run("-c", "import torch"), lambda mine, theirs: "no answers")
