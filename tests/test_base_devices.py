"""The type and device that inputs follow."""

import torch
from torch import nn

from specialize_nb.base.devices import leading, to_model


def test_most_numbers_decide():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.layer = nn.Linear(3, 2)
    assert leading(model) is model.layer.weight
    assert to_model(torch.ones(1, 3, dtype=torch.float64), model).dtype == torch.float32
    model.layer.double()
    assert to_model(torch.ones(1, 3), model).dtype == torch.float64


def test_whole_numbers_only_where_there_are_no_others():
    model = nn.Module()
    model.register_buffer("count", torch.zeros(9, dtype=torch.int64))
    assert leading(model) is model.count
    model.register_buffer("scale", torch.ones(1))
    assert leading(model) is model.scale
    assert leading(nn.Identity()).numel() == 0
    x = torch.ones(2)
    assert to_model(x, nn.Identity()) is x
