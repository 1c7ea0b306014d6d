"""Audits from the shell, without writing Python

`specialize-nb demo` audits three small networks, on digits and text, `specialize-nb audit` a network of your own,
`specialize-nb plan` says what that would take, `specialize-nb layers` finds the groups of its layers, and
`specialize-nb report` writes the report of saved audits again. Mistakes are answered in one line, with exit status 2.

A plain module, not a notebook: mechanism without a story. The options of a command are the parameters of the functions
it calls, read from their source; PyTorch is imported after the command line is understood.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import re
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specialize_nb import __version__
from specialize_nb.audits import sources
from specialize_nb.audits.sources import UserError, file_of, function_of, one_line
from specialize_nb.base.signatures import Parameter, assigned, parameters
from specialize_nb.base.words import near

if TYPE_CHECKING:
    from torch import nn

    from specialize_nb.audits.audit import Audit
    from specialize_nb.layers.segments import LayerGroups
    from specialize_nb.lesions.plan import Plan

__all__ = ["main"]


# What a shell knows that Python does not

_NOT_OPTIONS = (
    "model",
    "data",
    "network",
    "find",
    "by",
    "words",
    "progress",
    "distances",
    "given",
)  # MODEL, --data, --tasks

_LEAST = {
    "k": 2,
    "n": 4,
    "n_controls": 1,
    "n_visual": 0,
    "n_jobs": 1,
    "repeats": 1,
    "examples": 1,
    "size": 1,
    "seed": 0,
}
# The functions refuse smaller numbers too, but only after PyTorch is loaded

_RATES = ("alpha",)  # between 0 and 1, likewise

_RUNNING = ("device", "precision", "store", "n_jobs", "memory", "seed")  # How, not what: shown together

_TABLES = {  # Options that are names of a table
    "graphs": "audits.kinds.KINDS",
    "ablation": "lesions.lesion.ABLATIONS",
    "outcomes": "lesions.outcomes.OUTCOMES",
    "measure": "layers.measures.MEASURES",
}

_FAMILIES = {"outcomes": r"class_accuracy|accuracy_\d+"}  # Names that are not listed there, one for each class

_ONLY_WITH = {name: ("measure", "gw") for name in ("n_random", "max_iter", "batched")}  # No other looks at them

_OLD_NAMES = {"n_controls": "--controls", "n_visual": "--visual", "n_exhibits": "--exhibits", "n_jobs": "--jobs"}


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A function that a command calls; its parameters are options of the command."""

    function: str  # As 'audits.audit.audit'
    only: tuple[str, ...] = ()  # Its parameters that are options; (): all that a shell can give
    without: tuple[str, ...] = ()  # Parameters that the command fills in itself
    preset: Mapping[str, Any] = field(default_factory=dict)  # Options that have another default than in Python

    def options(self) -> list[Parameter]:
        left_out = {*_NOT_OPTIONS, *self.without}
        found = [one for one in parameters(*file_of(self.function)) if one.name not in left_out]
        return [one for one in found if not one.name.startswith("*") and (not self.only or one.name in self.only)]

    def chosen(self, options: argparse.Namespace) -> dict[str, Any]:
        """What the command line says for this function."""
        given = {one.name: getattr(options, one.name) for one in self.options() if hasattr(options, one.name)}
        return {**self.preset, **given}

    def __call__(self, *args: Any, **others: Any) -> Any:
        return function_of(self.function)(*args, **others)


_LOAD = _Call(function="audits.sources.load_model", without=("seed",))
_AUDIT = _Call(function="audits.audit.audit")
_DEMO = _Call(function="audits.audit.audit", only=("store", "n_jobs", "seed"))
_PLAN = _Call(function="audits.audit.plan_audit", without=("important",))  # of a `Sequential` design alone
_DISTANCES = _Call(
    function="layers.distances.layer_distances",
    preset={"repeats": 3},  # so that the groups can be given a support
)
_GROUPS = _Call(function="layers.segments.layer_groups", without=("layers",))  # the distances have their names
_LEAST_LAYERS = 4  # of `layer_groups`


# Options from signatures


def _add_options(group: Any, call: _Call, names: Sequence[str]) -> None:
    """Parameters of a function as options."""
    for one in call.options():
        if one.name in names:
            _add_option(group, one, file_of(call.function)[0], call.preset)


def _add_option(group: Any, one: Parameter, path: Path, preset: Mapping[str, Any]) -> None:
    kind = _Kind.of(ast.parse(one.annotation, mode="eval").body, path)
    if one.name in _TABLES and (names := _names_of(_TABLES[one.name])):
        kind = dataclasses.replace(kind, names=tuple(names), types=kind.types - {"text"})
    if not kind.types and not kind.names:
        where = f"{one.name}: {one.annotation} ({path.name})"
        raise RuntimeError(f"{where} cannot be given in a shell: name it in _NOT_OPTIONS of {__name__}")
    default = preset[one.name] if one.name in preset else _value(one.default)
    told = {"dest": one.name, "default": argparse.SUPPRESS, "help": _help(one, kind, default)}
    flag = f"--{one.name.replace('_', '-')}"
    if kind.types == {"bool"}:
        group.add_argument(flag, action="store_true" if default is False else argparse.BooleanOptionalAction, **told)
        return
    told |= {"type": partial(_read, one.name, kind), "metavar": kind.metavar, "nargs": "+" if kind.many else None}
    group.add_argument(flag, **told)
    if one.name in _OLD_NAMES:
        group.add_argument(_OLD_NAMES[one.name], **told | {"help": argparse.SUPPRESS})


@dataclass(frozen=True)
class _Kind:
    """What an option takes, from the type of its parameter."""

    types: frozenset[str] = frozenset()  # 'bool', 'int', 'float', 'text', 'path'
    names: tuple[str, ...] = ()  # Those of a `Literal`
    many: bool = False  # One or more

    @classmethod
    def of(cls, node: ast.expr | None, path: Path) -> _Kind:
        """What a shell can give of a type, as it is written in the module at `path`; empty if that is nothing."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            left, right = cls.of(node.left, path), cls.of(node.right, path)
            return cls(left.types | right.types, left.names + right.names, left.many or right.many)
        if isinstance(node, ast.Subscript):
            outer, inside = ast.unparse(node.value), node.slice
            if outer == "Literal":
                names = inside.elts if isinstance(inside, ast.Tuple) else [inside]
                return cls(names=tuple(one.value for one in names if isinstance(one, ast.Constant)))
            if outer == "tuple" and isinstance(inside, ast.Tuple) and ast.unparse(inside.elts[-1]) == "...":
                return dataclasses.replace(cls.of(inside.elts[0], path), many=True)
            if outer in ("Sequence", "Iterable", "Collection", "list"):
                return dataclasses.replace(cls.of(inside, path), many=True)
            return cls()
        word = ast.unparse(node) if node else ""
        plain = {"bool": "bool", "int": "int", "float": "float", "str": "text", "Path": "path", "os.PathLike": "path"}
        if word in plain:
            return cls(frozenset({plain[word]}))
        return cls.of(assigned(path, word), path) if word.isidentifier() and word != "None" else cls()

    @property
    def metavar(self) -> str:
        if self.names:
            return "NAME"
        words = {"int": "N", "float": "NUMBER", "path": "PATH", "text": "TEXT"}
        return next(word for kind, word in words.items() if kind in self.types)


def _read(name: str, kind: _Kind, text: str) -> Any:
    """One word of the command line as the function takes it."""
    if text in kind.names or (name in _FAMILIES and re.fullmatch(_FAMILIES[name], text)):
        return text
    for one, convert in (("int", int), ("float", float)):
        if one in kind.types:
            try:
                return _in_range(name, convert(text))
            except ValueError:
                continue
    if kind.types & {"text", "path"}:
        return text
    if kind.names:
        close = near(text, kind.names, most=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(kind.names)}){hint}")
    raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * ('float' not in kind.types)}number")


def _in_range(name: str, number: float) -> float:
    if name in _LEAST and number < _LEAST[name]:
        raise argparse.ArgumentTypeError(f"{number} is too few; give {_LEAST[name]} or more")
    if name in _RATES and not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{number:g} is no rate; give a number between 0 and 1")
    return number


def _names_of(table: str) -> list[str]:
    """The names in a table of the package: of the table itself where it is loaded, else as they are written."""
    path, name = file_of(table)
    module = sys.modules.get(f"specialize_nb.{table.rpartition('.')[0]}")
    if module is not None:
        return [str(getattr(one, "name", one)) for one in getattr(module, name)]
    return list(_keys(assigned(path, name) if path.is_file() else None))


def _keys(node: ast.expr | None) -> Iterator[str]:
    """The keys of a dict as it is written: one by one, or made of the rows of a tuple by their first argument."""
    if isinstance(node, ast.Dict):
        yield from (one.value for one in node.keys if isinstance(one, ast.Constant))
    elif isinstance(node, ast.DictComp):
        yield from _keys(node.generators[0].iter)
    elif isinstance(node, ast.Tuple | ast.List):
        for row in node.elts:
            if isinstance(row, ast.Call):
                named = [one.value for one in row.keywords if one.arg == "name"]
                first = next(iter([*named, *row.args]), None)
                yield from [first.value] if isinstance(first, ast.Constant) else []


def _value(default: str | None) -> Any:
    """A default as it is written; None where it takes more than reading."""
    try:
        return None if default is None else ast.literal_eval(default)
    except ValueError:
        return None


def _help(one: Parameter, kind: _Kind, default: Any) -> str:
    """The comment of a parameter, with the names it takes and its default."""
    if one.name == "n_jobs":
        return "Processes that the work is shared out to (default: one a processor)"  # Python leaves it to joblib
    notes = [f"of {', '.join(kind.names)}"] if kind.names else []
    if default is not None and not isinstance(default, bool):
        words = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        notes.append(f"default: {words}")
    told = f"{one.comment} ({'; '.join(notes)})" if notes else one.comment
    return told.replace("%", "%%")


# The command line

_EXAMPLES = """\
examples:
  specialize-nb demo
  specialize-nb audit my_model.py:make_model --data digits
  specialize-nb audit my_model.py:make_model --weights trained.pt --data mnist --root ~/data
  specialize-nb audit my_package.models:Net --weights net.pt --data photos --size 64
  specialize-nb audit my_model.py:make_model --data my_data.py:make_data --out my_audit
  specialize-nb audit my_model.py:make_model --data digits --graphs upstream downstream
  specialize-nb audit hf:my_model --data text:story.txt --length 128
  specialize-nb audit hf:my_model --tasks code=text:code.txt prose=text:prose.txt
  specialize-nb layers my_model.py:make_model --data digits --measure cka
  specialize-nb report my_audit --out report.html
"""

_ABOUT_AUDIT = """\
Audit a network of your own: find clusters of its units, compare each with random groups of
units, print the verdict, and write a report and everything behind it into a folder.

FACTORY is a function or class that, called without arguments, returns the network (a
torch.nn.Module) or the data (tensors x and y, or (x, y) batches that can be read again).
Loading it runs its code: audit only files you trust. Weights are read with
weights_only=True and run nothing.
"""

_ABOUT_PLAN = "say what the lesions of such an audit would take, after a short probe"

_ABOUT_LAYERS = """\
Say which layers of a network of your own tell the same inputs apart: the distances between all
layers, and which runs of neighbours belong together. Writes distances.csv, groups.csv and
layers.png into a folder. Loading a network runs its code, as with `audit`.
"""

_ABOUT_DEMO = """\
Train a fully connected and a convolutional network on scikit-learn's handwritten digits, and a
small transformer on source code and prose that come with Python; audit each on what it has not
seen, the transformer on both kinds of text apart as well; and write a report. It takes a few
minutes, downloads nothing, and shows what an audit is.
"""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes like every other part of the command, and gets its options when it is asked to read some."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None  # Adds the options; reading signatures takes time

    def filled(self) -> _Parser:
        if self.fill:
            fill, self.fill = self.fill, None
            fill(self)
        return self

    def parse_known_args(self, *args: Any, **others: Any) -> Any:
        self.filled()
        return super().parse_known_args(*args, **others)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    """The whole command line."""
    about = "Which groups of units of a PyTorch network are locally specialized? Finds and tests them."
    parser = _Parser("specialize-nb", description=about, epilog=_EXAMPLES, formatter_class=_layout)
    parser.add_argument("--version", action="version", version=f"specialize-nb {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    add, words = partial(_add_command, commands), "MODEL --data DATA"
    add("demo", _demo, _demo_options, "audit three small networks, on digits and text: start here", _ABOUT_DEMO)
    add("audit", _audit, _audit_options, "audit a network of your own", _ABOUT_AUDIT, words, epilog=_EXAMPLES)
    add("plan", _plan, _plan_options, _ABOUT_PLAN, f"{_ABOUT_PLAN}.", words)
    add("layers", _layers, _layers_options, "find groups of layers that do the same", _ABOUT_LAYERS, words)
    says = "write the report of saved audits again"
    add("report", _report, _report_options, says, f"{says.capitalize()}.", "AUDIT [AUDIT ...]")
    return parser


def _add_command(
    commands: Any, name: str, run: Callable, fill: Callable, says: str, about: str, words: str = "", **others: Any
) -> None:
    usage = " ".join(["specialize-nb", name, *([words] if words else []), "[options]"])
    parser = commands.add_parser(name, help=says, description=about, usage=usage, formatter_class=_layout, **others)
    parser.fill = fill
    parser.set_defaults(run=run, parser=parser)


def _demo_options(parser: argparse.ArgumentParser) -> None:
    _running_options(parser, [_DEMO], "report")


def _audit_options(parser: argparse.ArgumentParser) -> None:
    network = _subject_options(parser, several=True)
    network.add_argument("--name", default="", metavar="TEXT", help="What the report calls it (default: its class)")
    _search_options(parser, "what to look for, and how hard", [_AUDIT])
    _running_options(parser, [_LOAD, _AUDIT], "audit-FACTORY")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    _subject_options(parser, several=True)
    _search_options(parser, "what to look for, and how hard", [_PLAN])
    _running_options(parser, [_LOAD, _PLAN], "")


def _layers_options(parser: argparse.ArgumentParser) -> None:
    _subject_options(parser)
    _search_options(parser, "how to compare and group layers", [_DISTANCES, _GROUPS])
    _running_options(parser, [_LOAD, _DISTANCES, _GROUPS], "layers-FACTORY")


def _report_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("audits", nargs="+", metavar="AUDIT", help="A saved audit, or a folder that holds some")
    add("--out", metavar="FILE.html", default="report.html", help="File to write (default: report.html)")
    _traceback_option(parser)


def _understood(words: Sequence[str]) -> argparse.Namespace:
    """The command line, every word of it."""
    options, unknown = _parser().parse_known_args(words)
    for name, (other, needed) in _ONLY_WITH.items():
        if hasattr(options, name) and (found := getattr(options, other, needed)) != needed:
            flags = f"--{name.replace('_', '-')}", f"--{other} {needed}", f"--{other} {found}"
            options.parser.error("argument {}: goes with {}, not with {}".format(*flags))
    if unknown:
        close = near(unknown[0], re.findall(r"--[\w-]+", options.parser.format_help()), most=1, alike=0.8)
        hint = f"; did you mean {close[0]}?" if close else ""
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _layout(prog: str) -> argparse.HelpFormatter:
    width = min(shutil.get_terminal_size().columns, 100) - 2
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=width)


def _subject_options(parser: argparse.ArgumentParser, *, several: bool = False) -> Any:
    """The network, and the data it is judged on, of several tasks or of one. Returns the group of the network's."""
    network = parser.add_argument_group("the network")
    network.add_argument("model", metavar="MODEL", help="FILE.py:FACTORY, package.module:FACTORY, or hf:FOLDER")
    _add_options(network, _LOAD, ["weights"])
    data = parser.add_argument_group("the data it is judged on")
    *first, last = map(_source_in_words, sources.SOURCES)
    says = f"{', '.join(first)}, or {last}"
    if several:
        either = data.add_mutually_exclusive_group(required=True)
        either.add_argument("--data", action="append", help=f"{says}; given again for each task, if there are several")
        told = "Data of several tasks, which are also judged apart: such as code=text:code.txt prose=text:prose.txt"
        either.add_argument("--tasks", nargs="+", type=_named_task, metavar="NAME=DATA", help=told)
    else:
        data.add_argument("--data", required=True, help=says)
    added: set[str] = set()
    for source in sources.SOURCES:
        for one in source.options():
            if one.name not in added:
                added.add(one.name)
                told = dataclasses.replace(one, comment=_for_sources(one.name))
                _add_option(data, told, file_of(source.reads)[0], source.preset)
    says = "Use N examples, evenly spaced (default: all)"
    whole = partial(_read, "examples", _Kind(frozenset({"int"})))
    data.add_argument("--examples", type=whole, metavar="N", default=argparse.SUPPRESS, help=says)
    return network


def _named_task(text: str) -> tuple[str, str]:
    """The name of a task, and what is said of its data."""
    name, _, given = text.partition("=")
    if not name or not given:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=DATA, such as code=text:code.txt")
    return name, given


def _source_in_words(source: sources.Source) -> str:
    """Its name, and what `--data` says, if that is not the name."""
    told = next((one.comment for one in parameters(*file_of(source.reads)) if one.name == source.given), "")
    return f"{source.name} ({told})" if told else source.name


def _for_sources(option: str) -> str:
    """What an option means for each kind of data that it goes with."""
    meanings: dict[str, list[str]] = {}
    for source in sources.SOURCES:
        for one in source.options():
            if one.name == option:
                meanings.setdefault(one.comment, []).append(source.name)
    return "; ".join(f"{', '.join(names)}: {comment}" for comment, names in meanings.items())


def _search_options(parser: argparse.ArgumentParser, title: str, calls: Sequence[_Call]) -> None:
    group = parser.add_argument_group(title)
    for names, call in _shared(calls):
        _add_options(group, call, [name for name in names if name not in _RUNNING])


def _running_options(parser: argparse.ArgumentParser, calls: Sequence[_Call], out: str) -> None:
    """Options of the commands that compute; `out` is empty where nothing is written."""
    group = parser.add_argument_group(f"how to compute{', and where to write' if out else ''}")
    if out:
        group.add_argument("--out", metavar="DIR", help=f"Folder to write into (default: {out})")
    for names, call in _shared(calls):
        _add_options(group, call, [name for name in names if name in _RUNNING])
    _traceback_option(group)


def _shared(calls: Sequence[_Call]) -> Iterator[tuple[list[str], _Call]]:
    """Each call with those of its options that no call before it has."""
    seen: set[str] = set()
    for call in calls:
        names = [one.name for one in call.options() if one.name not in seen]
        seen.update(names)
        yield names, call


def _traceback_option(parser: Any) -> None:
    parser.add_argument("--traceback", action="store_true", help="Show where in the code a mistake was noticed")


# The commands


def _say(text: str) -> None:
    print(f"specialize-nb: {text}", file=sys.stderr, flush=True)


def _told(text: str) -> str:
    """Text for the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings of this package as one line each, once; those of other packages are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=RuntimeWarning, module=r"specialize_nb\b")
        warnings.showwarning = lambda message, *_, **__: _say(f"note: {one_line(message)}")
        yield


def _progress() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _threads(jobs: int | None) -> Iterator[int]:
    """As many jobs as processors, each with one thread: more threads than processors only get in each other's way."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs, before = jobs or usable, torch.get_num_threads()
    torch.set_num_threads(max(1, usable // jobs))
    try:
        yield jobs
    finally:
        torch.set_num_threads(before)


@contextmanager
def _running(call: _Call, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The options of a function that computes, as many processes as were asked for, and a bar if somebody watches."""
    chosen = call.chosen(options)
    with _threads(chosen.get("n_jobs")) as jobs:
        yield chosen | {"n_jobs": jobs}


def _slug(name: str) -> str:
    """A folder's name made of a network's."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-._").lower() or "network"


_FILE = "audit.npz"  # of each audit, in a folder of its own


def _check_out(out: Path, names: Sequence[str] = ()) -> None:
    """Can the results be written there?"""
    if taken := next((one for one in (out, *out.parents) if one.exists() and not one.is_dir()), None):
        raise UserError(f"--out {out.as_posix()!r}: {taken.as_posix()!r} is a file, not a folder")
    for name in names:
        folder = out / _slug(name)
        if folder.exists() and not (folder / _FILE).exists():
            raise UserError(f"{folder.as_posix()!r} exists and is no saved audit: choose another --out")


def _asked_for(options: argparse.Namespace) -> dict[str, str]:
    """Name of a task -> what is said of its data; the name is '' where there is one task."""
    if tasks := getattr(options, "tasks", None):
        pairs, flag = tasks, "--tasks"
    else:
        given = [options.data] if isinstance(options.data, str) else options.data
        if len(given) == 1:
            return {"": given[0]}
        pairs, flag = [(Path(one.rpartition(":")[2]).stem or one, one) for one in given], "--data"
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{flag}: two tasks are called {twice!r}; name them with --tasks NAME=DATA NAME=DATA")
    if len(pairs) < 2:
        raise UserError(f"{flag} names 1 task, {names[0]!r}: name two or more, or say {pairs[0][1]} with --data")
    return dict(pairs)


def _about_data(options: argparse.Namespace, asked: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Task -> the options that go with its data. Raises: `UserError` for one that goes with no data."""
    every = {name for one in sources.SOURCES for name in one.names()}
    said = {name: value for name, value in vars(options).items() if name in every}
    fits = {task: set(sources.find_source(given).names()) for task, given in asked.items()}
    nowhere = said.keys() - set.union(*fits.values())
    about = {}
    for task, given in asked.items():
        own = {name: value for name, value in said.items() if name in fits[task] | nowhere}
        if options.model.startswith(sources.HUB) and given.startswith("text:"):
            own = {"tokenizer": options.model.removeprefix(sources.HUB)} | own
        sources.check_data(given, own)
        about[task] = own
    return about


def _prepared(options: argparse.Namespace, prefix: str = "") -> tuple[nn.Module, str, Any, Path]:
    """The network, the data in words and as batches, of each task by its name if there are several, and the folder to
    write into.

    What can be found wrong without PyTorch is found first.
    """
    factory = sources.check_model(options.model, getattr(options, "weights", None))
    asked = _asked_for(options)
    about = _about_data(options, asked)
    out = Path(getattr(options, "out", None) or f"{prefix}-{_slug(factory)}")
    if prefix:
        _check_out(out, [options.name] if getattr(options, "name", "") else [])
    seed = {"seed": options.seed} if hasattr(options, "seed") else {}
    model = sources.load_model(options.model, **_LOAD.chosen(options), **seed)
    found = {task: sources.load_data(given, **about[task], **seed) for task, given in asked.items()}
    for _, data in found.values():
        sources.check_fits(model, data)
    if len(found) == 1:
        return model, *found[""], out
    words = "; ".join(f"{task}: {told}" for task, (told, _) in found.items())
    return model, words, {task: data for task, (_, data) in found.items()}, out


def _named_audit(result: Audit, model: str, data: str, found_in: str) -> Audit:
    """The audit, under the names that the command uses."""
    settings = {**result.settings, "activation clusters found in": found_in}
    return dataclasses.replace(result, model=model, data=data, settings=settings)


def _finish(audits: Sequence[Audit], out: Path) -> None:
    """Save, report, and say what was found."""
    from specialize_nb.audits.report import write_report

    for one in audits:
        one.save(out / _slug(one.model) / _FILE)
    path = write_report(audits, out / "index.html")
    for one in audits:
        print(_told(one.verdict))
        print()
    print(f"report: {path.resolve()}", flush=True)


def _words(options: argparse.Namespace) -> Any:
    """What tokens stand for, where the data are texts that are read in one way; None where that is not known."""
    from specialize_nb.audits.hub import words_of

    about = _about_data(options, _asked_for(options))
    texts = [sources.find_source(given).name.startswith("text") for given in _asked_for(options).values()]
    folders = {own.get("tokenizer") for own in about.values()}
    if not all(texts) or len(folders) > 1:
        return None
    return words_of(folders.pop())


def _audit(options: argparse.Namespace) -> None:
    """`specialize-nb audit`."""
    model, words, data, out = _prepared(options, "audit")
    title = options.name or type(model).__name__
    _check_out(out, [title])
    with _running(_AUDIT, options) as chosen:
        result = _AUDIT(model, data, words=_words(options), **chosen, progress=_progress())
    _finish([_named_audit(result, title, words, f"every other example of {words}")], out)


def _plan(options: argparse.Namespace) -> None:
    """`specialize-nb plan`."""
    model, _, data, _ = _prepared(options)
    with _running(_PLAN, options) as chosen:
        plans = _PLAN(model, data, **chosen)
    for name, one in plans.items():
        print(f"{name}: {one.headline}")
    for note in dict.fromkeys(note for one in plans.values() for note in one.notes):
        print(_told(note))
    if plans:
        print(_told(_summed(plans.values(), kept=chosen.get("store") is not None)))


def _summed(plans: Collection[Plan], *, kept: bool) -> str:
    """How long all of it takes, and how much memory and disk."""
    from specialize_nb.lesions.plan import spell_bytes, spell_time

    low, about, high = (sum(one.wall[case] for one in plans) for case in ("low", "expected", "high"))
    jobs = max(one.n_jobs for one in plans)
    each = f" in each of {jobs} processes" if jobs > 1 else ""
    results = spell_bytes(2 * sum(one.disk["results"] for one in plans))  # those of coherence are as many
    store = f", and finished lesions at most {spell_bytes(sum(one.disk['store'] for one in plans))}" * kept
    return (
        f"together about {spell_time(about)} (likely {spell_time(low)} to {spell_time(high)}); memory: about "
        f"{spell_bytes(max(one.bytes for one in plans))}{each}, beside Python and its libraries; disk: the results at "
        f"most {results}{store}, and the report; coherence and pictures come on top of the time"
    )


def _layers(options: argparse.Namespace) -> None:
    """`specialize-nb layers`."""
    if hasattr(options, "layers"):
        _check_layers(options.layers, "--layers")
    model, _, data, out = _prepared(options, "layers")
    from specialize_nb.base.files import write_atomic
    from specialize_nb.network.units import trace

    network = trace(model, data.example, residual="stream")  # as `layer_distances` does, which takes it over
    if not hasattr(options, "layers"):
        _check_layers([one.name for one in network.layers if one.kind != "input"], network.model)
    with _running(_DISTANCES, options) as chosen:
        found = _DISTANCES(model, data, **chosen, network=network, progress=_progress())
    groups = _GROUPS(found, **_GROUPS.chosen(options))
    for name, frame in (("distances", found.to_frame()), ("groups", groups.to_frame())):
        write_atomic(out / f"{name}.csv", frame.to_csv(index=False).encode())
    write_atomic(out / "layers.png", _picture(groups))
    print(_told(groups.verdict))
    print(groups.to_frame().to_string(index=False))
    print(f"written: {out.resolve()}", flush=True)


def _check_layers(layers: Sequence[str], whose: str) -> None:
    if len(set(layers)) < _LEAST_LAYERS:
        listed = ", ".join(map(repr, dict.fromkeys(layers)))
        raise UserError(f"{whose} has {len(set(layers))} layers ({listed}); groups need at least {_LEAST_LAYERS}")


def _picture(groups: LayerGroups) -> bytes:
    """The distances with the borders of the groups, as a PNG; without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    groups.plot(figure.subplots())
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A network that the demo trains and audits."""

    model: nn.Module
    train: Any  # What it learns from
    training: Mapping[str, Any]  # How
    test: Any  # What it is judged on; of several tasks, by their names
    find: Any  # What clusters are found in, of the same form
    words: tuple[str, str]  # Both in words
    asked: Mapping[str, Any] = field(default_factory=dict)  # Options of the audit

    def told(self) -> str:
        """What it gets right."""
        from specialize_nb.training.fit import accuracy

        if not isinstance(self.test, dict):
            return f"gets {accuracy(self.model, self.test):.0%} of {len(self.test.y)} digits it has not seen right"
        parts = [f"{accuracy(self.model, one):.0%} of {name}" for name, one in self.test.items()]
        return f"gets {' and '.join(parts)} right, letter by letter"


def _on_digits(model: nn.Module) -> _Shown:
    from specialize_nb.base.data import digits

    train, words = digits("train"), ("digits, test split", "digits, train split")
    return _Shown(model=model, train=train, training={"epochs": 40}, test=digits("test"), find=train, words=words)


def _on_text(seed: int) -> _Shown:
    """A small language model, and few sequences to judge it on, so that the demo stays short."""
    from specialize_nb.base.text import CHARACTERS, text
    from specialize_nb.stats.sequential import Sequential
    from specialize_nb.training.models import transformer

    def some(split: str, n: int) -> dict[str, Any]:
        return {name: sources.load_data("text", domain=name, split=split, examples=n, length=32)[1] for name in domains}

    domains = ("code", "prose")
    return _Shown(
        model=transformer(length=32, width=32, depth=2, seed=seed),
        train=text("train", length=32),
        training=dict(epochs=8, lr=4e-3, batch_size=64),
        test=some("test", 32),
        find=some("train", 200),
        words=("code and prose of Python, test split", "code and prose of Python, train split"),
        asked=dict(words=CHARACTERS, k=6, scopes=("global",), n_controls=Sequential(most=199)),
    )


def _demo(options: argparse.Namespace) -> None:
    """`specialize-nb demo`."""
    out, names = Path(options.out or "report"), ("MLP", "CNN", "Transformer")
    _check_out(out, names)
    from specialize_nb.training.fit import fit
    from specialize_nb.training.models import cnn, mlp

    found = []
    with _running(_DEMO, options) as chosen:
        seed = chosen.get("seed", 0)
        made = (
            _on_digits(mlp((64, 96, 96, 96, 10), dropout=0.5, seed=seed)),
            _on_digits(cnn(size=8, channels=(32, 32, 32), dense=64, seed=seed)),
            _on_text(seed),
        )
        for name, one in zip(names, made, strict=True):
            fit(one.model, one.train, **one.training, seed=seed, progress=_progress())
            print(f"{name}: trained, {one.told()}; auditing", flush=True)
            result = _DEMO(one.model, one.test, find=one.find, **one.asked, **chosen, progress=_progress())
            found.append(_named_audit(result, name, *one.words))
    print()
    _finish(found, out)


def _report(options: argparse.Namespace) -> None:
    """`specialize-nb report`."""
    files = [file for given in map(Path, options.audits) for file in _saved(given)]
    _check_out(Path(options.out).parent)
    from specialize_nb.audits.audit import Audit
    from specialize_nb.audits.report import write_report

    print(f"report: {write_report([Audit.load(one) for one in files], Path(options.out)).resolve()}", flush=True)


def _saved(given: Path) -> list[Path]:
    """The audits that are kept there: a file, the one of a folder, or those of the folders in it."""
    if given.is_file():
        return [given]
    inside = [given / _FILE] if (given / _FILE).is_file() else sorted(given.glob(f"*/{_FILE}"))
    if not inside:
        none = f"it has no {_FILE}, nor has a folder in it"
        raise UserError(
            f"no saved audit {given.as_posix()!r}: {none if given.exists() else 'there is no such file or folder'}"
        )
    return inside


_MISTAKES = (
    UserError,
    ValueError,
    KeyError,
    TypeError,
    OSError,
    ImportError,
    MemoryError,
)  # What the package raises for input it cannot use


def main(
    argv: Sequence[str] | None = None,  # Words of the command line; None takes those of the process
) -> int:  # Exit status: 0 done, 2 a mistake that the one line on standard error explains, 130 stopped
    """Run one command, as the shell does.

    Parameters
    ----------
    argv : Sequence[str] | None, default None
        Words of the command line; None takes those of the process

    Returns
    -------
    int
        Exit status: 0 done, 2 a mistake that the one line on standard error explains, 130 stopped
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _understood(words)
        with _short_warnings():
            options.run(options)
        return 0
    except SystemExit as stop:  # --help, --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except _MISTAKES as error:
        if "--traceback" in words:
            traceback.print_exc()
        _say(one_line(error))
        return 2
