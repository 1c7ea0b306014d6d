"""Every block of code in README.md runs as it is written, after the ones above it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
OURS, NOT_OURS = "specialize-nb", ("make", "pip", "git")  # what a line of the shell may start with
# Added to an audit from the shell, so that it is small: its default is all images and 199 controls of every sub-cluster.
SMALL = "--graphs weights --scopes global --examples 200 --controls 19 --visual 5 --jobs 1".split()


def blocks(text):
    """(language, line in the file, content) of every fenced block."""
    return [(m[1], text[: m.start(2)].count("\n") + 1, m[2]) for m in BLOCK.finditer(text)]


def run_python(found, folder, namespace):
    """Run a block in `namespace`. One whose first line names a file, as `# name.py`, is that file, too."""
    _, line, source = found
    if name := re.match(r"# (\w+\.py)\n", source):
        (folder / name[1]).write_text(source, encoding="utf-8")
    padded = "\n" * (line - 1) + source  # an error names the line of README.md
    exec(compile(padded, str(README), "exec"), namespace)


def run_shell(found, folder):
    """Run the commands of this package, and refuse any that is neither ours nor known to belong elsewhere."""
    for command in found[2].strip().splitlines():
        program, *options = shlex.split(command)
        if program in NOT_OURS:
            continue
        assert program == OURS, f"README.md line {found[1]}: {command!r} starts with neither {OURS} nor {NOT_OURS}"
        options += SMALL if options[0] == "audit" else []
        call = [sys.executable, "-m", "specialize_nb", *options]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"README.md line {found[1]}: {command}\n{done.stdout}{done.stderr}"


def run_all(text, folder):
    namespace = {"__name__": "readme"}
    for found in blocks(text):
        assert found[0] in ("python", "sh", "text"), f"README.md line {found[1]}: a block of {found[0]!r}"
        if found[0] == "python":
            run_python(found, folder, namespace)
        elif found[0] == "sh":
            run_shell(found, folder)
    return namespace


def test_every_block_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    kinds = [kind for kind, _, _ in blocks(text)]
    assert kinds.count("python") >= 7 and kinds.count("sh") >= 3 and text.count("```") == 2 * len(kinds)
    run_all(text, tmp_path)
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert list((tmp_path / "lesions").rglob("*.npz"))
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    "text, error",
    [
        ("```python\nx = 1\n```\n\n```python\nx + partition\n```\n", NameError),
        ("```sh\nspecialize-nb nothing\n```\n", AssertionError),
        ("```sh\nrm -r things\n```\n", AssertionError),
        ("```\nx = 1\n```\n", AssertionError),
    ],
)
def test_a_block_that_does_not_run_is_noticed(text, error, tmp_path):
    with pytest.raises(error):
        run_all(text, tmp_path)


def test_a_block_sees_those_above_it_and_a_named_one_is_a_file(tmp_path):
    text = "```python\n# one.py\na = 2\n```\n\nand\n\n```text\n2\n```\n\n```python\nb = a + 1\n```\n"
    assert run_all(text, tmp_path)["b"] == 3
    assert (tmp_path / "one.py").read_text(encoding="utf-8") == "# one.py\na = 2\n"
