"""How results are kept on disk: one `.npz` of arrays and JSON, written atomically, read without pickle.

A plain module, not a notebook: there is nothing here to teach.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_result", "write_atomic", "write_result"]

_FIELDS = "__fields__"
_FORMAT = 2  # 1: results as one flat list of arrays and fields; blocks of lesions are the same in both


def write_atomic(
    path: str | Path,  # The file; folders on the way are made
    content: bytes,  # All of it
) -> Path:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Parameters
    ----------
    path : str | Path
        The file; folders on the way are made
    content : bytes
        All of it

    Returns
    -------
    Path
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_result(
    path: str | Path,  # The file; folders on the way are made
    kind: str,  # Class of the result
    arrays: Mapping[str, np.ndarray],  # By name; of any shape, of numbers or strings
    fields: Mapping[str, Any],  # The rest, as JSON has it
) -> Path:
    """Keep a result of class `kind`: its arrays, and its other fields as JSON.

    Parameters
    ----------
    path : str | Path
        The file; folders on the way are made
    kind : str
        Class of the result
    arrays : Mapping[str, np.ndarray]
        By name; of any shape, of numbers or strings
    fields : Mapping[str, Any]
        The rest, as JSON has it

    Returns
    -------
    Path

    Raises: `ValueError` if an array holds Python objects, which only pickle could store.
    """
    import io

    if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise ValueError(f"arrays {objects} hold Python objects; store numbers or strings")
    header = json.dumps({"format": _FORMAT, "kind": kind, "fields": dict(fields)}, allow_nan=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{_FIELDS: np.array(header)}, **arrays)
    return write_atomic(path, buffer.getvalue())


def read_result(
    path: str | Path,  # The file
    kind: str,  # Class that the result must be of
    *,
    oldest: int = 1,  # The oldest format that is still read, at least 1
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and fields that `write_result` kept.

    Parameters
    ----------
    path : str | Path
        The file
    kind : str
        Class that the result must be of
    oldest : int, default 1
        The oldest format that is still read, at least 1

    Returns
    -------
    tuple[dict[str, np.ndarray], dict[str, Any]]

    Raises: `FileNotFoundError`; `ValueError` if the file is no result, holds another class, or is of a format newer
    than this version knows, or older than `oldest`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop(_FIELDS)))
        version, found, fields = header["format"], header["kind"], header["fields"]
    except Exception as error:  # zip, zlib, npy and JSON each have their own for a damaged file
        raise ValueError(f"{str(path)!r} is not a result of specialize_nb, or is damaged: {error}") from error
    if version > _FORMAT:
        raise ValueError(f"{str(path)!r} has format {version}; this version reads up to {_FORMAT}: upgrade")
    if version < oldest:
        raise ValueError(f"{str(path)!r} has format {version}, which this version no longer reads: compute it again")
    if found != kind:
        raise ValueError(f"{str(path)!r} holds a {found}, not a {kind}")
    return arrays, fields
