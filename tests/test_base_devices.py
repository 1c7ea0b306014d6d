"""The type and device that inputs follow."""

import torch
from torch import nn

from specialize_nb.base.devices import free_memory, leading, taken_by, to_model, typed_as


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
