"""Where the shell gets a network, its weights and its data from: files, packages, named data sets, folders of images.

A plain module, not a notebook: mechanism without a story. `SOURCES` has one row for each kind of data. Nothing heavy is
imported before something has to be loaded: what can be found wrong with a name is found before that.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from specialize_nb.base.signatures import Parameter, parameters
from specialize_nb.base.words import near

if TYPE_CHECKING:
    from torch import Tensor, nn

    from specialize_nb.base.data import Batches

__all__ = [
    "HUB",
    "SOURCES",
    "Source",
    "UserError",
    "check_data",
    "check_fits",
    "check_model",
    "file_of",
    "find_source",
    "function_of",
    "load_data",
    "load_model",
    "made_by",
    "one_line",
]


class UserError(Exception):
    """Something that whoever typed the command can put right."""


def one_line(
    error: BaseException,  # Whatever was raised
) -> str:
    """The message of an error, on one line; a KeyError's without its quotes.

    Parameters
    ----------
    error : BaseException
        Whatever was raised

    Returns
    -------
    str
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


# Functions by name, so that what they take can be read before they are imported


def file_of(
    function: str,  # 'base.data.digits': wing, room and name
) -> tuple[Path, str]:
    """The file of a function of this package, and the function's name there.

    Parameters
    ----------
    function : str
        'base.data.digits': wing, room and name

    Returns
    -------
    tuple[Path, str]
    """
    *rooms, name = function.split(".")
    return Path(__file__).parents[1].joinpath(*rooms).with_suffix(".py"), name


def function_of(
    function: str,  # 'base.data.digits': wing, room and name
) -> Callable[..., Any]:
    """The function itself. Imports its module.

    Parameters
    ----------
    function : str
        'base.data.digits': wing, room and name

    Returns
    -------
    Callable[..., Any]
    """
    room, _, name = function.rpartition(".")
    return getattr(importlib.import_module(f"specialize_nb.{room}"), name)


# Data


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of data that the shell can read: a row of the table.

    Attributes
    ----------
    name : str
        As `--help` lists it
    reads : str
        The function that reads it, as 'base.data.digits'; its parameters are options of the shell
    given : str, default ''
        The parameter that takes what `--data` says; '' if the name is enough
    fixed : Mapping[str, Any]
        Parameters that this row settles
    without : tuple[str, ...], default ()
        Parameters that stay at their default
    preset : Mapping[str, Any]
        Options that have another default than in Python
    takes : Callable[[str], bool] | None, default None
        Does `--data` say this one? None: if it says the name
    words : str, default '{given}'
        What the report calls the data; {given} and the options are filled in
    absent : str, default ''
        What to say where files are missing; '' leaves it to the function
    thins : bool, default True
        Can some examples be taken?
    """

    name: str  # As `--help` lists it
    reads: str  # The function that reads it, as 'base.data.digits'; its parameters are options of the shell
    given: str = ""  # The parameter that takes what `--data` says; '' if the name is enough
    fixed: Mapping[str, Any] = field(default_factory=dict)  # Parameters that this row settles
    without: tuple[str, ...] = ()  # Parameters that stay at their default
    preset: Mapping[str, Any] = field(default_factory=dict)  # Options that have another default than in Python
    takes: Callable[[str], bool] | None = None  # Does `--data` say this one? None: if it says the name
    words: str = "{given}"  # What the report calls the data; {given} and the options are filled in
    absent: str = ""  # What to say where files are missing; '' leaves it to the function
    thins: bool = True  # Can some examples be taken?

    def options(self) -> list[Parameter]:
        """The parameters of the function that are options of the shell."""
        # Every command has a --seed, which goes to all that draw.
        settled = {self.given, "seed", *self.fixed, *self.without}
        return [one for one in parameters(*file_of(self.reads)) if one.name not in settled]

    def names(self) -> list[str]:
        """The options that go with this kind of data."""
        return [one.name for one in self.options()] + ["examples"] * self.thins

    def is_meant(
        self,
        given: str,  # What `--data` says
    ) -> bool:
        """Does `--data` mean this kind of data?

        Parameters
        ----------
        given : str
            What `--data` says

        Returns
        -------
        bool
        """
        return self.takes(given) if self.takes else given == self.name

    def read(
        self,
        given: str,  # What `--data` says
        options: Mapping[str, Any],  # Those that were given, by name
        seed: int,  # For a function that draws
    ) -> tuple[str, Any]:  # The data in words, and the data
        """Read the data. Raises: `UserError` where files are missing; what the function raises.

        Parameters
        ----------
        given : str
            What `--data` says
        options : Mapping[str, Any]
            Those that were given, by name
        seed : int
            For a function that draws

        Returns
        -------
        tuple[str, Any]
            The data in words, and the data
        """
        function = function_of(self.reads)
        takes = inspect.signature(function).parameters
        asked = {**self.fixed, **self.preset, **options} | {self.given: given, "seed": seed}
        call = inspect.signature(function).bind_partial(**{name: asked[name] for name in takes if name in asked})
        call.apply_defaults()
        try:
            data = function(*call.args, **call.kwargs)
        except FileNotFoundError as error:
            if not self.absent:
                raise
            raise UserError(self.absent.format(**call.arguments)) from error
        return self.words.format(**{"given": given} | call.arguments), data


_TORCHVISION: dict[str, Any] = dict(
    reads="base.data.torchvision_images",
    preset={"root": "data", "split": "test"},
    words="{given}, {split} split",
    absent="{name} is not in {root!r}: say with --root DIR where torchvision keeps it, or --download to fetch it there",
)

SOURCES = (
    Source(name="digits", reads="base.data.digits", preset={"split": "test"}, words="{given}, {split} split"),
    Source(name="mnist", fixed={"name": "MNIST"}, **_TORCHVISION),
    Source(name="fashion", fixed={"name": "FashionMNIST"}, **_TORCHVISION),
    Source(name="cifar10", fixed={"name": "CIFAR10"}, **_TORCHVISION),
    Source(
        name="text", reads="base.text.text", preset={"split": "test"}, words="code and prose of Python, {split} split"
    ),
    Source(
        name="text:FILE",
        reads="audits.hub.text_file",
        given="given",
        takes=lambda given: given.startswith("text:"),
        words="{given}",
    ),
    Source(
        name="a folder of images",
        reads="base.data.image_folder",
        given="root",
        without=("batch_size",),
        takes=lambda given: Path(given).is_dir(),
        words="images of {given}",
    ),
    Source(
        name="FILE.py:FACTORY",
        reads="audits.sources.made_by",
        given="given",
        takes=lambda given: ":" in given,
        thins=False,
    ),
)


def find_source(
    given: str,  # What `--data` says
) -> Source:
    """Which kind of data is meant?

    Parameters
    ----------
    given : str
        What `--data` says

    Returns
    -------
    Source

    Raises: `UserError` if it is none.
    """
    if found := next((one for one in SOURCES if one.is_meant(given)), None):
        return found
    close = near(given, [one.name for one in SOURCES if one.takes is None], most=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    *first, last = (one.name for one in SOURCES)
    raise UserError(f"no data {given!r}: {hint}give one of {', '.join(first)}, or {last}")


def check_data(
    given: str,  # What `--data` says
    options: Mapping[str, Any],  # Those that were given, by name
) -> Source:
    """Which kind of data is meant, and do the options go with it? Reads nothing.

    Parameters
    ----------
    given : str
        What `--data` says
    options : Mapping[str, Any]
        Those that were given, by name

    Returns
    -------
    Source

    Raises: `UserError` for an option that this kind of data would not look at, and for one that it needs.
    """
    source = find_source(given)
    if strange := [name for name in options if name not in source.names()]:
        fits = ", ".join(map(_option, source.names()))
        goes = f"its options are {fits}" if fits else "let your own factory return what you want"
        raise UserError(f"{_option(strange[0])} does not go with --data {given}: {goes}")
    for one in source.options():
        if one.default is None and one.name not in {**source.preset, **options}:
            raise UserError(f"{given!r} is {source.name}: say with {_option(one.name)} what it needs ({one.comment})")
    if source.reads.startswith("audits.sources."):
        _split(given, "the data")
    return source


def load_data(
    given: str,  # A name, a folder, or FILE.py:FACTORY
    *,
    seed: int = 0,  # What a function of the user's meets
    **options: Any,  # Those that go with this kind of data; examples: how many, evenly spaced
) -> tuple[str, Batches]:
    """What a network is judged on, in words and as checked batches.

    Parameters
    ----------
    given : str
        A name, a folder, or FILE.py:FACTORY
    seed : int, default 0
        What a function of the user's meets
    **options : Any
        Those that go with this kind of data; examples: how many, evenly spaced

    Returns
    -------
    tuple[str, Batches]
    """
    source = check_data(given, options)
    words, data = source.read(given, options, seed)
    from specialize_nb.base.data import batches

    return words, batches(_some(data, options.get("examples")))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _some(data: Any, n: int | None) -> Any:
    """`n` examples, evenly spaced; all of them if there are no more."""
    if n is None:
        return data
    import torch
    from torch.utils.data import DataLoader, Subset

    from specialize_nb.base.data import Labelled

    total = len(data.x) if isinstance(data, Labelled) else len(data.dataset)
    if n >= total:
        return data
    rows = [i * total // n for i in range(n)]
    if isinstance(data, Labelled):
        return Labelled(data.x[rows], data.y[rows])
    return DataLoader(Subset(data.dataset, rows), batch_size=data.batch_size, generator=torch.Generator())


def made_by(
    given: str,  # Or package.module:FACTORY, called without arguments
    *,
    seed: int = 0,  # What the factory finds the global generators at
) -> Batches:
    """The data that a function of the user's returns.

    Parameters
    ----------
    given : str
        Or package.module:FACTORY, called without arguments
    seed : int, default 0
        What the factory finds the global generators at

    Returns
    -------
    Batches
    """
    from specialize_nb.base.data import batches

    with _seeded(seed):
        found = _call(given, _factory(given, "the data"))
    try:
        return batches(found)
    except (TypeError, ValueError) as error:
        raise UserError(f"what {given!r} returned cannot be used: {one_line(error)}") from error


# Models


def check_model(
    given: str,  # FILE.py:FACTORY, package.module:FACTORY, or hf:FOLDER
    weights: str | Path | None = None,  # File of a state dict
) -> str:  # The factory's name, or the folder's
    """Is there such a file? Runs and reads nothing.

    Parameters
    ----------
    given : str
        FILE.py:FACTORY, package.module:FACTORY, or hf:FOLDER
    weights : str | Path | None, default None
        File of a state dict

    Returns
    -------
    str
        The factory's name, or the folder's

    Raises: `UserError` if not.
    """
    if given.startswith(HUB):
        folder = Path(given.removeprefix(HUB))
        if weights:
            raise UserError(f"{given!r} has its own weights: leave --weights out, or give FILE.py:FACTORY")
        if not folder.is_dir():
            raise UserError(f"no folder {folder.as_posix()!r}: {HUB}FOLDER is one that save_pretrained has written")
        return folder.resolve().name
    name = _split(given, "the model")[1]
    if weights and not Path(weights).is_file():
        raise UserError(f"no file of weights {Path(weights).as_posix()!r}")
    return name


def load_model(
    given: str,  # FILE.py:FACTORY, package.module:FACTORY, or hf:FOLDER
    *,
    weights: str | Path | None = None,  # File of its state dict, as kept by torch.save
    device: str = "cpu",  # Where to compute: cpu, cuda, ...
    seed: int = 0,  # What the factory finds the global generators at
) -> nn.Module:  # In eval mode
    """The network to examine.

    Parameters
    ----------
    given : str
        FILE.py:FACTORY, package.module:FACTORY, or hf:FOLDER
    weights : str | Path | None, default None
        File of its state dict, as kept by torch.save
    device : str, default 'cpu'
        Where to compute: cpu, cuda, ...
    seed : int, default 0
        What the factory finds the global generators at

    Returns
    -------
    nn.Module
        In eval mode

    Raises: `UserError` for whatever can be put right at the keyboard.
    """
    check_model(given, weights)
    from torch import nn

    with _seeded(seed):
        factory = _from_hub(given) if given.startswith(HUB) else _factory(given, "the model")
        model = factory if isinstance(factory, nn.Module) else _call(given, factory)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{given!r} returned a {type(model).__name__}, not a torch.nn.Module: return the network itself"
        )
    if weights:
        _load_weights(model, Path(weights))
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {one_line(error)}") from error


HUB = "hf:"  # a folder in the layout of Hugging Face


def _from_hub(given: str) -> nn.Module:
    from specialize_nb.audits.hub import load_folder

    try:
        return load_folder(given.removeprefix(HUB))
    except (ImportError, OSError, ValueError) as error:
        raise UserError(one_line(error)) from error


def check_fits(
    model: nn.Module,  # In eval mode
    data: Batches,  # What it is to be judged on
) -> None:
    """Does the network take the data?

    Parameters
    ----------
    model : nn.Module
        In eval mode
    data : Batches
        What it is to be judged on

    Raises: `UserError` with the shapes of the inputs and the first layer, if not.
    """
    import torch
    from torch.utils import _pytree as pytree

    from specialize_nb.base.devices import taken_by
    from specialize_nb.network.lookups import LookupRefused, check_lookup

    example = taken_by(data.example, model)
    try:
        with torch.no_grad():
            _answer(model, example)
    except Exception as error:
        try:
            check_lookup(model, error, lambda: _answer(model, example))
        except LookupRefused as told:
            hint = "; --tokenizer DIR names another" if "tokenizer" in str(told) else ""
            raise UserError(one_line(told) + hint) from error
        owners = (
            (name, one) for name, one in model.named_modules() if next(one.parameters(recurse=False), None) is not None
        )
        name, first = next(owners, ("", model))
        layer = f"its first layer with weights is {name or 'itself'} = {' '.join(repr(first).split())[:100]}"
        shapes = " and ".join(str(tuple(one.shape[1:])) for one in pytree.tree_leaves(example))
        found = f"inputs of shape {shapes} each, after the batch dimension"
        raise UserError(
            f"the model does not take the data: {found}; {layer}; PyTorch says: {one_line(error)}"
        ) from error


def _answer(model: nn.Module, x: Any) -> Any:
    """What the model puts out for inputs as data give them: several by place in a tuple, by name in a mapping."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


# Weights are read with weights_only=True: the file can hold numbers, and nothing that runs


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a file; training scripts often keep it under 'state_dict' or 'model'."""
    import torch

    advice = "save them with torch.save(model.state_dict(), 'weights.pt')"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path.as_posix()!r} is no file of weights, or holds more than numbers: {advice}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path.as_posix()!r} holds a {type(state).__name__}, not the weights of a model: {advice}")
    return state


def _load_weights(model: nn.Module, path: Path) -> None:
    """Put weights from a file into the model."""
    found, wanted = _read_weights(path), model.state_dict()
    wrong = [f"no {key!r}" for key in wanted if key not in found]
    wrong += [f"{key!r}, which the model has not" for key in found if key not in wanted]
    for key in wanted:
        if key in found and found[key].shape != wanted[key].shape:
            wrong.append(f"{key!r} of shape {tuple(found[key].shape)} for {tuple(wanted[key].shape)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        what = f"weights of {path.as_posix()!r} are not those of {type(model).__name__}"
        raise UserError(f"{what}: the file has {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(found)


# The user's own code


def _split(given: str, what: str) -> tuple[str, str]:
    """SOURCE and NAME of SOURCE:NAME; a SOURCE that is a file is there."""
    source, _, name = given.rpartition(":")
    if not source or not name:
        raise UserError(
            f"{what} {given!r}: give FILE.py:FACTORY or package.module:FACTORY, such as my_model.py:make_model"
        )
    path = Path(source)
    if source.endswith(".py") and not path.is_file():
        folder = path.parent
        files = [one.name for one in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        there = _hint(path.name, files, "Python files") if folder.is_dir() else "nor is there such a folder"
        raise UserError(f"no file {path.as_posix()!r} in {folder.resolve().as_posix()!r}; {there}")
    return source, name


def _factory(given: str, what: str) -> Any:
    """The object behind SOURCE:NAME."""
    source, name = _split(given, what)
    module = _from_file(Path(source)) if source.endswith(".py") else _from_package(source)
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if _is_own(value, module)]
        raise UserError(f"{source!r} has no {name!r}; {_hint(name, own, 'functions and classes')}")
    return getattr(module, name)


def _is_own(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _hint(name: str, names: Sequence[str], kind: str) -> str:
    """The end of a message: names like `name`, or the first few there are."""
    if close := near(name, names):
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    return f"its {kind} are {', '.join(map(repr, names[:5]))}" if names else f"it has no {kind}"


def _from_file(path: Path) -> ModuleType:
    """Run a Python file as a module; files beside it can be imported from it."""
    spec = importlib.util.spec_from_file_location(f"specialize_nb_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a module up by its name
    with _user_code(f"loading {path.as_posix()!r}"), _path(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> ModuleType:
    """Import a module, from the current folder too."""
    with _path(Path.cwd()):
        try:
            found = all(part.isidentifier() for part in name.split(".")) and importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if not found:
            raise UserError(
                f"no module {name!r} here or among the installed packages; a file is given as FILE.py:FACTORY"
            )
        with _user_code(f"importing {name!r}"):
            return importlib.import_module(name)


@contextmanager
def _path(folder: Path) -> Iterator[None]:
    """`folder` is where imports look first."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _call(given: str, factory: Any) -> Any:
    """What a factory returns."""
    if not callable(factory):
        raise UserError(f"{given!r} is a {type(factory).__name__}, not a function that can be called")
    try:
        needed = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty and p.kind < 2]
    except (TypeError, ValueError):
        needed = []  # written in C: calling it will tell
    if needed:
        raise UserError(f"{given!r} needs arguments ({', '.join(needed)}): wrap it in a function without any")
    with _user_code(f"calling {given!r}"):
        return factory()


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Errors of the user's own code, with the line they come from."""
    try:
        yield
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{Path(error.filename).name}, line {error.lineno}"
        raise UserError(f"{what} failed with {type(error).__name__}: {one_line(error)} ({where})") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The user's code meets the same random numbers in every run; afterwards all generators are as before."""
    import numpy as np

    from specialize_nb.base.seeds import seeded

    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with seeded(seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
