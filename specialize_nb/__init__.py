"""Which groups of units in a neural network are locally specialized?

The rooms are modules of the same name as their notebooks; what most people need is here.
"""

from specialize_nb.audit import Audit, audit
from specialize_nb.coherence import Coherence, coherence
from specialize_nb.data import Labelled, batches, digits
from specialize_nb.graph import UnitGraph, activation_graph, weight_graph
from specialize_nb.importance import Importance, importance
from specialize_nb.partition import Partition, local_partition, ncut, spectral_partition
from specialize_nb.train import accuracy, cnn, fit, mlp, vgg
from specialize_nb.units import Network, record, trace
from specialize_nb.visualize import visualize

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Coherence",
    "Importance",
    "Labelled",
    "Network",
    "Partition",
    "UnitGraph",
    "accuracy",
    "activation_graph",
    "audit",
    "batches",
    "cnn",
    "coherence",
    "digits",
    "fit",
    "importance",
    "local_partition",
    "mlp",
    "ncut",
    "record",
    "spectral_partition",
    "trace",
    "vgg",
    "visualize",
    "weight_graph",
]
