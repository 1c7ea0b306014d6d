"""Find the locally specialized groups of units in a PyTorch network, with evidence a statistician would sign

Modules:

- `specialize_nb.activations`: How alike any two units respond, measured over batches in fixed memory.
- `specialize_nb.agreement`: Do two partitions, or two measures of similarity, see the same groups?
- `specialize_nb.audit`: Which groups of units in a network are locally specialized?
- `specialize_nb.cli`: Audits from the shell, without writing Python.
- `specialize_nb.clusterability`: Is a network made of clusters at all, or does any network cut as well?
- `specialize_nb.coherence`: Do the units of a group answer to the same thing?
- `specialize_nb.controls`: Random groups to compare a sub-cluster with.
- `specialize_nb.damage`: The damage of many lesions, in blocks that are kept, resumed and shared out.
- `specialize_nb.data`: Labelled images, and any other data, as batches that can be read again
- `specialize_nb.extract`: Writes the test cells of notebooks to `tests/test_<module>.py`, so that pytest needs no notebook machinery.
- `specialize_nb.graph`: The units of a network as the nodes of a weighted graph.
- `specialize_nb.hooked`: Runs a model that torch.export refuses: cut at the calls of its modules, by hooks.
- `specialize_nb.importance`: Does a group of units matter more than random units do?
- `specialize_nb.interactions`: Which groups of units stand in for each other, and which work through each other?
- `specialize_nb.layers`: How far apart are the layers of a network, in what they tell apart?
- `specialize_nb.lesion`: What a network does without a group of its units.
- `specialize_nb.matching`: Controls from equally strong units, so that important means more than large weights
- `specialize_nb.modular_training`: Make networks more modular: by a cost, from the start, or by pruning
- `specialize_nb.modularity`: Which units hold together more than their degrees explain, and is that news?
- `specialize_nb.networks`: How large is the effect over several networks of one setting?
- `specialize_nb.operations`: What is known of the operations of a traced program: which move numbers, keep them, mix them, or carry weights.
- `specialize_nb.outcomes`: What a lesion costs, image by image, and which summary of it to take
- `specialize_nb.partition`: Cut the units of a network into clusters that hold together.
- `specialize_nb.perturbation`: Change single units of the real network, and see whether the wiring told the truth.
- `specialize_nb.plan`: How long an analysis will take, and what it needs, before it is started.
- `specialize_nb.report`: One page that tells people who were not there what was found.
- `specialize_nb.segments`: Which runs of layers do the same thing, and where does it change?
- `specialize_nb.sequential`: How many random controls does each sub-cluster need before its verdict is clear?
- `specialize_nb.similarity`: Which units share what drives them, and which share what they drive.
- `specialize_nb.stats`: Is a group of units more than chance would make it?
- `specialize_nb.strands`: One layer's units as they lie in one value of a traced program, and what operations do to them.
- `specialize_nb.testing`: Strict comparisons, and small networks whose truth is known
- `specialize_nb.train`: Reference networks, and the training that makes them the same every time
- `specialize_nb.units`: The units of a network, and which of them feed which.
- `specialize_nb.visualize`: What a group of units asks to see, as pictures.
- `specialize_nb.wiring`: Follows units through a traced program, operation by operation: which weights join which units.
- `specialize_nb.zoo`: Small networks of every layout that people build, alone and in random compositions, to test the wiring on."""

from specialize_nb.activations import activation_graph, record
from specialize_nb.agreement import Agreement, agreement
from specialize_nb.audit import Audit, audit
from specialize_nb.clusterability import Clusterability, clusterability, stability, sweep
from specialize_nb.coherence import Coherence, coherence
from specialize_nb.damage import DamageRun, damage_run
from specialize_nb.data import Labelled, batches, digits
from specialize_nb.graph import UnitGraph, weight_graph
from specialize_nb.importance import Importance, importance
from specialize_nb.interactions import Interactions, dependency_graph, interactions, taxonomy
from specialize_nb.layers import LayerDistances, layer_distances
from specialize_nb.lesion import LesionTable, lesion_table
from specialize_nb.matching import strata, unit_properties
from specialize_nb.modular_training import clusterability_cost, clusterable_init, magnitude_pruning, relu_rescaling
from specialize_nb.modularity import ModularPartition, modularity, modularity_partition, modularity_test
from specialize_nb.networks import Combined, combine
from specialize_nb.partition import Partition, local_partition, ncut, spectral_partition
from specialize_nb.perturbation import check_wiring
from specialize_nb.plan import Plan, plan
from specialize_nb.segments import LayerGroups, layer_groups
from specialize_nb.sequential import Sequential
from specialize_nb.similarity import Similarity, measure_similarity, unit_similarity
from specialize_nb.train import accuracy, cnn, fit, mlp, vgg
from specialize_nb.units import Network, trace
from specialize_nb.visualize import visualize

__version__ = "0.1.0"

__all__ = [
    "Agreement",
    "Audit",
    "Clusterability",
    "Coherence",
    "Combined",
    "DamageRun",
    "Importance",
    "Interactions",
    "Labelled",
    "LayerDistances",
    "LayerGroups",
    "LesionTable",
    "ModularPartition",
    "Network",
    "Partition",
    "Plan",
    "Sequential",
    "Similarity",
    "UnitGraph",
    "accuracy",
    "activation_graph",
    "agreement",
    "audit",
    "batches",
    "check_wiring",
    "clusterability",
    "clusterability_cost",
    "clusterable_init",
    "cnn",
    "coherence",
    "combine",
    "damage_run",
    "dependency_graph",
    "digits",
    "fit",
    "importance",
    "interactions",
    "layer_distances",
    "layer_groups",
    "lesion_table",
    "local_partition",
    "magnitude_pruning",
    "measure_similarity",
    "mlp",
    "modularity",
    "modularity_partition",
    "modularity_test",
    "ncut",
    "plan",
    "record",
    "relu_rescaling",
    "spectral_partition",
    "stability",
    "strata",
    "sweep",
    "taxonomy",
    "trace",
    "unit_properties",
    "unit_similarity",
    "vgg",
    "visualize",
    "weight_graph",
]
