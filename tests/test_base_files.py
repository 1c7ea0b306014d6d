"""Results on disk: whole or not at all, and read back only as what they are."""

import io
import json
import os
import pickle

import numpy as np
import pytest

from specialize_nb.base import files
from specialize_nb.base.files import read_result, write_atomic, write_result

ARRAYS = {
    "labels": np.array([0, -1, 2], dtype=np.int64),
    "draws": np.array([[1.5, np.nan], [np.inf, 1e-300]]),
    "alive": np.array([True, False]),
    "none": np.zeros((0, 3), dtype=np.float32),
    "names": np.array(["conv1", "fc"]),
}
FIELDS = {"k": 4, "layers": ["conv1", "fc"], "settings": {"norm": "l1", "fold_bn": True}, "ncut": 0.25, "note": None}


def test_a_result_comes_back_as_it_went(tmp_path):
    path = write_result(tmp_path / "deep" / "result.npz", "Partition", ARRAYS, FIELDS)
    arrays, fields = read_result(path, "Partition")
    assert fields == FIELDS and list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_a_result_of_another_kind_is_refused(tmp_path):
    path = write_result(tmp_path / "result.npz", "Partition", ARRAYS, FIELDS)
    with pytest.raises(ValueError, match="holds a Partition, not a Evidence"):
        read_result(path, "Evidence")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FORMAT", files._FORMAT + 1)
    path = write_result(tmp_path / "result.npz", "Partition", ARRAYS, FIELDS)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=f"has format {files._FORMAT + 1}; this version reads up to {files._FORMAT}: upgrade"
    ):
        read_result(path, "Partition")


def test_object_arrays_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"arrays \['ragged'\] hold Python objects"):
        write_result(tmp_path / "result.npz", "Partition", {"ragged": np.array([{}, []], dtype=object)}, {})
    assert list(tmp_path.iterdir()) == []


def test_fields_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        write_result(tmp_path / "result.npz", "Partition", {}, {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent\.npz'"):
        read_result(tmp_path / "absent.npz", "Partition")


def _damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    array = io.BytesIO()
    np.save(array, np.arange(3))
    plain = io.BytesIO()
    np.savez(plain, a=np.arange(3))
    other = io.BytesIO()
    np.savez(other, __fields__=np.array(json.dumps([1, 2])))
    return {
        "empty": b"",
        "first half": content[:middle],
        "second half": content[middle:],
        "text": b"layer,unit,cluster\n",
        "one array": array.getvalue(),
        "arrays of another program": plain.getvalue(),
        "header of another program": other.getvalue(),
        "pickle": pickle.dumps(FIELDS),
    }


@pytest.mark.parametrize("name", _damaged(b""))
def test_a_file_that_is_no_result_is_refused(tmp_path, name):
    path = write_result(tmp_path / "result.npz", "Partition", ARRAYS, FIELDS)
    path.write_bytes(_damaged(path.read_bytes())[name])
    with pytest.raises(ValueError, match="is not a result of specialize_nb, or is damaged"):
        read_result(path, "Partition")


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = write_result(tmp_path / "result.npz", "Partition", ARRAYS, FIELDS)
    content, refused = path.read_bytes(), 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            arrays, fields = read_result(path, "Partition")
        except ValueError:
            refused += 1
        else:
            assert fields == FIELDS
            for name in ARRAYS.keys() & arrays.keys():
                np.testing.assert_array_equal(arrays[name], ARRAYS[name])
    assert refused > len(content) // 7 // 4


def test_nothing_pickled_is_ever_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "result.npz"
    np.savez(path, __fields__=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        read_result(path, "Partition")
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "report.html", b"old")

    def fail(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, fail)
            with pytest.raises(OSError, match="disk full"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert write_atomic(str(path), b"new").read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path, seen, synced, replace = write_atomic(tmp_path / "report.html", b"old"), [], [], os.replace

    def look(source, target):
        seen.append(path.read_bytes())
        assert open(source, "rb").read() == b"new"  # written out before it takes the name
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    write_atomic(path, b"new")
    assert synced == [3]  # all of it was on its way to the disk, not in a buffer
    assert seen == [b"old"] and path.read_bytes() == b"new"


def test_others_may_read_the_file(tmp_path):
    assert write_atomic(tmp_path / "report.html", b"x").stat().st_mode & 0o777 == 0o644
