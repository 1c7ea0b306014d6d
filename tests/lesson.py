"""What a user of the shell may have in a folder: a network that is right, and a few things that are not."""

import contextlib
import os
import tempfile
from pathlib import Path

MODELS = """
import torch
from torch import nn

def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))

def make_wide(width):
    return nn.Linear(64, width)

def make_list():
    return [1, 2]

def make_error():
    return 1 / 0

def make_stop():
    raise KeyboardInterrupt

def make_data():
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(40) % 10

def make_numbers():
    return make_data()[0], torch.randn(40, 10, generator=torch.Generator().manual_seed(1))

def make_many():
    return make_data()[0], (make_numbers()[1] > 0).float()

def make_bare():
    return make_data()[0]

def make_flat():
    return torch.zeros(40, 7), torch.arange(40) % 10

def make_spent():
    return iter([(torch.zeros(4, 1, 8, 8), torch.arange(4))])

ready = make_model()
SIZE = 3
"""


@contextlib.contextmanager
def lesson():
    "A folder with my_model.py in it, which is the current one for the time being."
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "my_model.py").write_text(MODELS)
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
