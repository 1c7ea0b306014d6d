"""What embeddings do not hold is told with the number, its place and what they do hold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.network.lookups import LookupRefused, check_lookup


class Words(nn.Module):
    """Tokens and places to scores; one table is a module, and one a plain tensor."""

    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(9, 4), nn.Parameter(torch.zeros(5, 4))

    def forward(self, ids):
        return self.token(ids) + F.embedding(torch.arange(ids.shape[1]), self.place)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (
            torch.tensor([[1, 2], [3, 9]]),
            r"Words fails: it is given 9 \(example 1, position 1\), and 'token' knows 0 to 8",
        ),
        (torch.tensor([[-100, 2]]), r"it is given -100 \(example 0, position 0\), and 'token' knows 0 to 8: give what"),
        (
            torch.ones(2, 7, dtype=torch.long),
            "'place' has a row for each of 5 positions, and the sequences need 7: cut",
        ),
        (torch.ones(2, 3), r"'token' looks up rows by whole numbers and gets float32: .* `ids.long\(\)`"),
    ],
)
def test_what_is_looked_up_is_told(ids, told):
    model = Words()
    with pytest.raises((IndexError, RuntimeError)) as failed:
        model(ids)
    with pytest.raises(LookupRefused, match=told):
        check_lookup(model, failed.value, lambda: model(ids))


def test_other_failures_are_left_alone():
    model, calls = Words(), []
    check_lookup(model, TypeError("something else"), lambda: calls.append(1))
    assert not calls
    check_lookup(model, RuntimeError("something else"), lambda: model(torch.ones(2, 3, dtype=torch.long)))
    check_lookup(model, IndexError("something else"), lambda: [][0])
