"""Find the locally specialized groups of units in a PyTorch network, with evidence a statistician would sign

Modules:

- `specialize_nb.audits.audit`: Which groups of units in a network are locally specialized?
- `specialize_nb.audits.cli`: Audits from the shell, without writing Python
- `specialize_nb.audits.hub`: Models and texts in the layout of Hugging Face, from folders and files that are there.
- `specialize_nb.audits.kinds`: The kinds of graph an audit can cluster, one row each: how it is built and cut, and what is asked of its clusters.
- `specialize_nb.audits.lockstep`: Lesions and coherence of several partitions, drawn look by look as the lists of one audit.
- `specialize_nb.audits.pooling`: Several tasks as one data set: what an audit judges together, and which task each example belongs to.
- `specialize_nb.audits.report`: One page that tells people who were not there what was found.
- `specialize_nb.audits.sources`: Where the shell gets a network, its weights and its data from: files, packages, named data sets, folders of images.
- `specialize_nb.audits.twins`: What does an audit find in a network that has learnt nothing?
- `specialize_nb.base.data`: Labelled images, and any other data, as batches that can be read again
- `specialize_nb.base.results`: The base of all results: a frame, a picture, a verdict in words, and one file that keeps everything, without pickle.
- `specialize_nb.base.signatures`: What a function takes, read from its source: names, types, defaults and what the comments say. Nothing is imported.
- `specialize_nb.base.targets`: What targets say: classes, a class at each position, several labels, numbers, or nothing.
- `specialize_nb.base.text`: Two kinds of text that come with Python, letter by letter
- `specialize_nb.clusters.agreement`: Do two partitions, or two measures of similarity, see the same groups?
- `specialize_nb.clusters.barber`: The modularity of clusters that run through layers: the sum of what each pair of layers has of it.
- `specialize_nb.clusters.blocks`: Modules that run through layers: each pair of layers beside what the strengths of its units explain.
- `specialize_nb.clusters.clusterability`: Is a network made of clusters at all, or does any network cut as well?
- `specialize_nb.clusters.contrast`: Which units answer more to one kind of input than to another?
- `specialize_nb.clusters.modularity`: Which units hold together more than their degrees explain, and is that news?
- `specialize_nb.clusters.partition`: A cluster for every unit, and how well that cuts the graph
- `specialize_nb.controls.controls`: Random groups to compare a sub-cluster with
- `specialize_nb.controls.matching`: Controls from equally strong units
- `specialize_nb.dev.docstrings`: Writes what the comments behind parameters and fields say into docstrings, so that `help` and editors show it.
- `specialize_nb.dev.extract`: What `nbdev-export` does beside writing modules: test cells become test files, comments become docstrings.
- `specialize_nb.dev.testing`: Models left as they were found, and small networks whose truth is known
- `specialize_nb.dev.zoo`: Small networks of every layout that people build, alone and in random compositions, to test the wiring on.
- `specialize_nb.graphs.activations`: How alike any two units respond, measured over batches in fixed memory
- `specialize_nb.graphs.graph`: The units of a network as the nodes of a weighted graph
- `specialize_nb.graphs.jacobians`: Means over data of what units share: covariances, Jacobians and second derivatives of the loss.
- `specialize_nb.graphs.similarity`: Which units share what drives them, and which share what they drive
- `specialize_nb.layers.distances`: How far apart are the layers of a network, in what they tell apart?
- `specialize_nb.layers.segments`: Which runs of layers do the same thing, and where does it change?
- `specialize_nb.lesions.attribution`: How much damage does one backward pass expect of every group?
- `specialize_nb.lesions.damage`: The damage of many lesions, in blocks that are kept, resumed and shared out
- `specialize_nb.lesions.dense`: Damage where each position of an example has a class, as in language models and segmentation.
- `specialize_nb.lesions.dissociation`: Does one group of units serve one task, and another group another task?
- `specialize_nb.lesions.importance`: Does a group of units matter more than random units do?
- `specialize_nb.lesions.interactions`: Which groups stand in for each other, and which work through each other?
- `specialize_nb.lesions.known`: Equal groups are lesioned once: what a lesion of some units of a layer cost does not depend on who asks.
- `specialize_nb.lesions.lesion`: What a network does without a group of its units
- `specialize_nb.lesions.outcomes`: What a lesion costs, image by image, and which summary of it to take
- `specialize_nb.lesions.plan`: How long an analysis will take, and what it needs, before it is started
- `specialize_nb.lesions.proof`: Does a stack of lesions say what each lesion says alone? Tried on the user's own batch, before anything is measured.
- `specialize_nb.network.answers`: One number for each unit and example, recorded or streamed
- `specialize_nb.network.apart`: Does a model answer to every example by itself? Found out on the first batch of the data.
- `specialize_nb.network.beside`: Labels beside the target: what an example, or each of its positions, belongs to besides what is to be predicted.
- `specialize_nb.network.bounds`: Between which numbers an output lies by the operations that make it, whatever the inputs are.
- `specialize_nb.network.gradients`: Are the derivatives of a traced program those of its model, example by example? And the part to differentiate.
- `specialize_nb.network.hooked`: Runs a model that torch.export refuses: cut at the calls of its modules, by hooks.
- `specialize_nb.network.inputs`: What a network is given: which types of numbers it takes, and which positions of a sequence are padding.
- `specialize_nb.network.lookups`: What a table of embeddings is asked for and does not hold: tokens of another vocabulary, or too many positions.
- `specialize_nb.network.operations`: What is known of the operations of a traced program: which move numbers, keep them, mix them, or carry weights.
- `specialize_nb.network.outputs`: What a network says: which of its outputs holds the scores, what they are for all data, and of what kind they are.
- `specialize_nb.network.perturbation`: Change single units, and see whether the wiring told the truth
- `specialize_nb.network.positions`: Which positions have a target that counts? Padding is left out; labels that are the tokens themselves are shifted.
- `specialize_nb.network.recurrence`: Recurrent modules in a traced program: the hidden state as one value, for all steps, that can be changed.
- `specialize_nb.network.rows`: Do the rows of what a layer puts out belong to the examples of the batch, one each, and are they finite?
- `specialize_nb.network.state`: A model is left as it was found, whatever its code keeps from one call to the next.
- `specialize_nb.network.strands`: One layer's units as they lie in one value of a traced program, and what operations do to them.
- `specialize_nb.network.stream`: What a direction of the residual stream adds to the scores, with nothing else changed: the direct path.
- `specialize_nb.network.subject`: A model, its traced network and its data, joined once: what every analysis passes on instead of the three.
- `specialize_nb.network.tokens`: What layers put out at each position of a sequence or a map, and which token stands there.
- `specialize_nb.network.units`: The units of a network, and which of them feed which
- `specialize_nb.network.wiring`: Follows units through a traced program, operation by operation: which weights join which units.
- `specialize_nb.responses.attainability`: How much of each unit's own best does one picture reach for all at once?
- `specialize_nb.responses.coherence`: Do the units of a group answer to the same thing?
- `specialize_nb.responses.concepts`: Which of the concepts that you have names for does a group answer to?
- `specialize_nb.responses.contexts`: Where in a text does a group of units answer most?
- `specialize_nb.responses.patches`: Which parts of real images excite a group, and do its units agree on where?
- `specialize_nb.responses.pictures`: What a group of units asks to see
- `specialize_nb.responses.sheets`: Everything there is to see of the groups of a layer, a row a group
- `specialize_nb.stats.discoveries`: How many findings are real, in any set picked after looking?
- `specialize_nb.stats.effects`: Standard deviations of random groups, with an interval over images and controls
- `specialize_nb.stats.equivalence`: Which groups can be left out at no more than a stated cost?
- `specialize_nb.stats.power`: What can a study of this size find, and how large must it be?
- `specialize_nb.stats.replication`: Is what was found in one network found in others of its setting?
- `specialize_nb.stats.sequential`: How many random controls does each sub-cluster need before its verdict is clear?"""

import lazy_loader

__version__ = "0.1.0"

# Names come from `__init__.pyi`, each imported when it is first asked for: `specialize-nb --help` needs no PyTorch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
