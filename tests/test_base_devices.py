"""The type and device that inputs follow, what memory may be taken, and threads."""

import math
import threading

import joblib
import pytest
import torch
from torch import nn

from specialize_nb.base import devices
from specialize_nb.base.devices import (
    check_room,
    fitting,
    free_memory,
    in_threads,
    leading,
    room_for,
    short_of,
    taken_by,
    threads,
    to_model,
    typed_as,
)


def test_most_numbers_decide():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.layer = nn.Linear(3, 2)
    assert leading(model) is model.layer.weight
    assert typed_as(torch.ones(1, 3, dtype=torch.float64), model).dtype == torch.float32
    model.layer.double()
    assert typed_as(torch.ones(1, 3), model).dtype == torch.float64
    assert to_model(torch.ones(1, 3), model).dtype == torch.float32


def test_whole_numbers_only_where_there_are_no_others():
    model = nn.Module()
    model.register_buffer("count", torch.zeros(9, dtype=torch.int64))
    assert leading(model) is model.count
    model.register_buffer("scale", torch.ones(1))
    assert leading(model) is model.scale
    assert leading(nn.Identity()).numel() == 0
    x = torch.ones(2)
    assert to_model(x, nn.Identity()) is x


class Wide(nn.Module):
    """Weights in single precision, sums in double; the input is changed in place."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return x.mul_(2).double() @ self.inner.weight.double().T


def test_types_are_changed_only_where_a_model_refuses_them():
    x = torch.ones(2, 3, dtype=torch.float64)
    assert taken_by(x, nn.Linear(3, 2).eval()).dtype == torch.float32
    assert taken_by({"input": x}, nn.Linear(3, 2).eval())["input"].dtype == torch.float32
    assert taken_by(x, Wide().eval()) is x and bool((x == 1).all())
    assert taken_by(x, Wide()).dtype == torch.float32  # in training mode it is not called
    assert taken_by(x.long(), nn.Linear(3, 2).eval()).dtype == torch.int64


def test_memory_that_can_be_taken(monkeypatch):
    "What torch holds on a GPU and does not use can be taken as well."
    assert 0.1 < free_memory() < 1e5
    told = dict(mem_get_info=lambda _: (int(3e9), int(8e9)), memory_reserved=lambda _: int(4e9))
    for name, answer in (told | dict(memory_allocated=lambda _: int(1e9))).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert free_memory("cuda:0") == 6.0


def test_what_may_be_taken(monkeypatch):
    "What is asked for, where so much is free; else a share of what is free. What has no room is refused, with sizes."
    monkeypatch.setattr(devices, "free_memory", lambda *_: 8.0)
    assert [room_for(one, share=0.25) for one in (None, 2.0, 20.0)] == [2.0, 2.0, 8.0]
    assert short_of(2.5) == "" and short_of(2.5, share=0.25) == "about 2.5 GB of memory, and 8 GB are free"
    assert short_of(2.5, 2.0) == "about 2.5 GB of memory, and memory=2 allows less"
    assert short_of(9.0, 20.0) == "about 9 GB of memory, and 8 GB are free"
    with pytest.raises(MemoryError, match=r"a graph needs about 3 GB of memory, and memory=2 allows less: allow more"):
        check_room("a graph", 3.0, 2.0, advice="allow more")
    check_room("a graph", 3.0, None, advice="allow more")
    for wrong in (0, -1.0, "4", True, math.nan):
        with pytest.raises(ValueError, match=r"got memory=.*: give GB above 0"):
            room_for(wrong)
    assert [fitting(4, 1.0, room) for room in (4.0, 3.9, 0.5)] == [4, 3, 1] and fitting(None, 1.0, 0.5) == 1


def test_threads():
    "In order, each with one thread of PyTorch, and in the mode of autograd of the caller; all is as before afterwards."
    before = torch.get_num_threads()

    def seen(one):
        return one, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()

    for n_jobs in (1, 2, -1):
        assert in_threads(seen, range(5), n_jobs) == [(one, True, False, 1) for one in range(5)]
        with torch.inference_mode():
            assert in_threads(seen, range(3), n_jobs) == [(one, False, True, 1) for one in range(3)]
    with joblib.parallel_config(n_jobs=2), threads() as each:
        names = each(lambda _: threading.current_thread().name, range(8))
    assert len(set(names)) <= 2 and threading.current_thread().name not in names
    assert in_threads(seen, range(2)) == [(one, True, False, before) for one in range(2)]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda one: 1 / one, (1, 0), 2)
    assert torch.get_num_threads() == before
