"""Models and texts in the layout of Hugging Face, from folders and files that are there.

A plain module, not a notebook: mechanism without a story. The shell reads `hf:FOLDER` and `text:FILE` here. Nothing is
fetched, and no code of the folder is run; the library `transformers` has to be installed by whoever has such a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from specialize_nb.base.data import Labelled

__all__ = ["load_folder", "text_file", "words_of"]


def load_folder(
    folder: str | Path,  # With config.json and the weights
) -> nn.Module:  # In eval mode, float32, without a cache of keys and values
    """The model that a folder holds, with the head that it was trained with.

    Parameters
    ----------
    folder : str | Path
        With config.json and the weights

    Returns
    -------
    nn.Module
        In eval mode, float32, without a cache of keys and values

    Raises: `FileNotFoundError` for a folder without a configuration; `ImportError` without `transformers`; `ValueError`
    for a model that this version of it does not know, or cannot read.
    """
    where = Path(folder)
    if not (where / "config.json").is_file():
        told = "there is no config.json in it" if where.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no model in {where.as_posix()!r}: {told}; save one there with save_pretrained")
    library = _transformers()
    options: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
    try:
        config = library.AutoConfig.from_pretrained(where, **options)
        name = next(iter(config.architectures or ()), "")
        kind = getattr(library, name, None) or library.AutoModel
        model = kind.from_pretrained(where, config=config, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"the model in {where.as_posix()!r} cannot be read: {words}") from error
    for one in (model.config, getattr(model, "generation_config", None)):
        if one is not None and hasattr(one, "use_cache"):
            one.use_cache = False  # which tracing cannot follow
    return model.float().eval()


def text_file(
    given: str,  # Any text in UTF-8
    *,
    length: int = 64,  # Tokens of a sequence, at least 2
    tokenizer: str | None = None,  # Folder of a tokenizer; default: that of an hf: model, else letters are tokens
) -> Labelled:  # x (n, length) int64 tokens, y the token that follows each, -100 at the last position
    """A text as sequences of tokens, each with the next one as its target; what is left over at the end is left out.

    Parameters
    ----------
    given : str
        Any text in UTF-8
    length : int, default 64
        Tokens of a sequence, at least 2
    tokenizer : str | None, default None
        Folder of a tokenizer; default: that of an hf: model, else letters are tokens

    Returns
    -------
    Labelled
        x (n, length) int64 tokens, y the token that follows each, -100 at the last position

    Raises: `FileNotFoundError` for a file or a tokenizer that is not there; `ImportError` without `transformers`;
    `ValueError` for a text that is none, or too short.
    """
    import torch

    from specialize_nb.base.text import next_token, to_tokens

    path = Path(given.removeprefix("text:"))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.as_posix()!r}: text:FILE reads a text of yours")
    try:
        words = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.as_posix()!r} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    ids = to_tokens(words) if tokenizer is None else torch.tensor(_tokens(words, tokenizer), dtype=torch.int64)
    if length < 2 or len(ids) < length:
        told = f"{path.as_posix()!r} has {len(ids):,} tokens, and a sequence {length}"
        raise ValueError(f"{told}: give a longer text, or a length from 2 to {max(len(ids), 2)}")
    return next_token(ids[: len(ids) // length * length].view(-1, length))


def words_of(
    tokenizer: str | None,  # Folder of a tokenizer; None: letters are tokens
) -> Any:  # A sequence of words, or a function from a token to its word
    """What does each token stand for?

    Parameters
    ----------
    tokenizer : str | None
        Folder of a tokenizer; None: letters are tokens

    Returns
    -------
    Any
        A sequence of words, or a function from a token to its word
    """
    from specialize_nb.base.text import CHARACTERS

    return CHARACTERS if tokenizer is None else _tokenizer(tokenizer).decode


def _tokens(words: str, folder: str) -> list[int]:
    """The tokens of a text, without those that a tokenizer puts at its ends."""
    return _tokenizer(folder)(words, add_special_tokens=False, verbose=False)["input_ids"]


def _tokenizer(folder: str) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    if not any((Path(folder) / name).is_file() for name in names):
        told = f"no tokenizer in {Path(folder).as_posix()!r}, only in a folder with {names[0]} or the like"
        raise FileNotFoundError(f"{told}: say with --tokenizer DIR where it is")
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        told = "models and tokenizers of Hugging Face need the library transformers"
        raise ImportError(f"{told}: install it beside this package, as with pip install transformers") from error
    return transformers
