"""Equal groups are lesioned once: over the partitions, nulls and looks of a trial, and in what `plan` counts."""

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose

from specialize_nb.clusters.partition import Partition
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.lesions.importance import (
    LesionOptions,
    grow_tallies,
    judge_importance,
    measure_importance,
    prepare_importance,
)
from specialize_nb.lesions.known import Known, Wanted
from specialize_nb.lesions.lesion import LesionEngine
from specialize_nb.lesions.plan import price
from specialize_nb.network.subject import Subject
from specialize_nb.stats.sequential import Sequential

OPTIONS = dict(outcomes=("cross_entropy", "accuracy"), n_boot=7)


def wanted(groups, replicates=False, layer="a", again=True):
    groups = np.array(groups, dtype=bool)
    return Wanted(layer, groups, replicates, np.full(len(groups), again))


def cost(one, rows):
    """A number that tells groups apart, and with replicates two more."""
    number = one.groups[rows] @ 2.0 ** np.arange(one.groups.shape[1])
    return {"cost": number[:, None] * ([1.0, 10.0, 100.0] if one.replicates else [1.0])}


def lesioned(known, asked):
    """What is due of these requests, and what each is told."""
    shared = known.share(asked)
    return shared.due, list(shared.told([cost(one, rows) for one, rows in zip(asked, shared.due, strict=True)]))


def test_each_group_once_and_told_to_all():
    asked = [wanted([[1, 0, 0], [1, 0, 0], [0, 1, 1]]), wanted([[0, 1, 1], [0, 0, 1]]), wanted([[1, 0, 0]], layer="b")]
    due, told = lesioned(known := Known(), asked)
    assert [rows.tolist() for rows in due] == [[0, 2], [1], [0]]
    for one, found in zip(asked, told, strict=True):
        assert_allclose(found["cost"], cost(one, np.arange(len(one.groups)))["cost"], rtol=0, strict=True)
    assert (known.n_asked, known.n_lesioned) == (6, 4)


def test_what_has_replicates_serves_what_needs_none_and_never_the_other_way():
    few, many = wanted([[1, 0, 1], [0, 1, 0]]), wanted([[0, 1, 0]], replicates=True)
    due, told = lesioned(Known(), [few, many])
    assert [rows.tolist() for rows in due] == [[0], [0]]  # the second row of the first comes from the second request
    assert told[0]["cost"].shape == (2, 1) and told[1]["cost"].shape == (1, 3)
    assert_allclose(told[0]["cost"][:, 0], [5.0, 2.0], rtol=0, strict=True)
    known = Known()
    assert [rows.tolist() for rows in lesioned(known, [few])[0]] == [[0, 1]]
    assert [rows.tolist() for rows in lesioned(known, [many])[0]] == [[0]]  # known, but without replicates
    due, told = lesioned(known, [many, few])
    assert [rows.tolist() for rows in due] == [[], []]
    assert_allclose(told[0]["cost"], [[2.0, 20.0, 200.0]], rtol=0, strict=True)
    assert_allclose(told[1]["cost"][:, 0], [5.0, 2.0], rtol=0, strict=True)


def test_only_what_may_come_again_is_kept_and_only_as_far_as_there_is_room():
    one = wanted([[1, 0, 0], [0, 1, 0]])
    known = Known()
    lesioned(known, [one._replace(again=np.array([False, True]))])
    assert [rows.tolist() for rows in lesioned(known, [one])[0]] == [[0]]
    full = Known(most=2 * (1 + 8))  # a byte and a number for each of two lesions
    lesioned(full, [one, wanted([[0, 0, 1]])])
    assert [rows.tolist() for rows in lesioned(full, [one, wanted([[0, 0, 1]])])[0]] == [[], [0]]
    assert full.n_bytes == full.most


@pytest.fixture(scope="module")
def planted():
    """A network, its modules, the same modules by other numbers, and labels dealt at random."""
    found = planted_mlp(hidden=(8, 8))
    modules = {name: found.labels[name] for name in ("0", "2")}
    rng = np.random.default_rng(0)
    again = {name: 5 - one for name, one in modules.items()}
    dealt = {name: rng.permutation(np.arange(16) // 3) for name in modules}
    parts = [Partition.from_labels(one) for one in (modules, again, dealt)]
    return Subject.of(found.model, (found.x, found.y)), parts


def trial_of(subject, partitions, **options):
    return prepare_importance(subject, partitions, LesionOptions(**(OPTIONS | options)))


def lesions_of(monkeypatch, work):
    """What some work gives, and how many lesions of the whole data the network was given, intact passes not counted."""
    n, scores = [0], LesionEngine.scores

    def counted(engine, part, masks):
        rows = next(iter(masks.values()))
        n[0] += int(rows.any(1).sum()) * (part.examples.stop - part.examples.start)
        return scores(engine, part, masks)

    with monkeypatch.context() as patch:
        patch.setattr(LesionEngine, "scores", counted)
        return work(), n[0]


def nothing_known(monkeypatch):
    """Every lesion that is asked for is done."""

    def due(shared):
        return [np.arange(len(one)) for one in shared.sources]

    def told(shared, measured):
        return iter(measured)

    monkeypatch.setattr("specialize_nb.lesions.known.Shared.due", property(due))
    monkeypatch.setattr("specialize_nb.lesions.known.Shared.told", told)


@pytest.mark.parametrize("n_controls", [59, Sequential(most=299)])
def test_the_same_numbers_with_fewer_lesions(planted, monkeypatch, n_controls):
    subject, partitions = planted
    trial = trial_of(subject, partitions, n_controls=n_controls)
    _, n = lesions_of(monkeypatch, lambda: measure_importance(trial))
    found = judge_importance(trial)
    done, asked = trial.known.n_lesioned, trial.known.n_asked
    assert n == done * subject.data.n < 0.6 * asked * subject.data.n
    assert all((one.n_lesions, one.n_spared) == (done, asked - done) for one in found)
    with monkeypatch.context() as patch:
        nothing_known(patch)
        plain = trial_of(subject, partitions, n_controls=n_controls)
        measure_importance(plain)
        others = judge_importance(plain)
    for one, other in zip(found, others, strict=True):
        for name in one.outcomes:
            np.testing.assert_array_equal(one.value[name], other.value[name])
            np.testing.assert_array_equal(one.draws[name], other.draws[name])
            np.testing.assert_array_equal(one.matched[name], other.matched[name])
            assert_allclose(one.replicates[name], other.replicates[name], rtol=1e-5, atol=1e-5, strict=True)


def test_a_module_costs_the_same_by_whatever_name(planted):
    """Also where its controls were asked for first by another partition: equal groups have equal costs to the bit."""
    subject, partitions = planted
    trial = trial_of(subject, partitions[:2], n_controls=39)
    measure_importance(trial)
    first, second = (both[0] for both in trial.tallies)
    names = {tuple(sub.units): i for i, sub in enumerate(second.subclusters)}
    places = [names[tuple(sub.units)] for sub in first.subclusters]
    for name, rows in first.damage.items():
        np.testing.assert_array_equal(rows, second.damage[name][:, places])
        np.testing.assert_array_equal(first.boot[name], second.boot[name][:, :, places])


def test_a_broken_run_goes_on_to_the_same_bits(planted, tmp_path, monkeypatch):
    subject, partitions = planted
    options = dict(n_controls=Sequential(most=99))
    whole = trial_of(subject, partitions, **options)
    measure_importance(whole)
    broken = trial_of(subject, partitions, store=tmp_path / "run", **options)
    for n in broken.options.looks[:2]:  # it ends after two looks, none of which ended a test
        grow_tallies(broken, n)
    again = trial_of(subject, partitions, store=tmp_path / "run", **options)
    _, n = lesions_of(monkeypatch, lambda: measure_importance(again))
    assert again.known.n_lesioned == whole.known.n_lesioned
    assert n < again.known.n_lesioned * subject.data.n
    for both, others in zip(whole.tallies, again.tallies, strict=True):
        for one, other in zip(both, others, strict=True):
            for name, rows in one.damage.items():
                np.testing.assert_array_equal(rows, other.damage[name])
                np.testing.assert_array_equal(one.boot[name], other.boot[name])


def test_workers_change_nothing(planted):
    subject, partitions = planted
    alone, shared = (trial_of(subject, partitions, n_controls=19) for _ in range(2))
    measure_importance(alone)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        measure_importance(shared)
    assert alone.known.n_lesioned == shared.known.n_lesioned
    for (one, _), (other, _) in zip(alone.tallies, shared.tallies, strict=True):
        for name, rows in one.damage.items():
            np.testing.assert_array_equal(rows, other.damage[name])


def test_a_plan_counts_what_will_be_done(planted):
    subject, partitions = planted
    trial = trial_of(subject, partitions, n_controls=59)
    foreseen = price(trial, probe_seconds=1e-3)
    assert trial.known.n_asked == 0  # a plan lesions nothing
    measure_importance(trial)
    assert sum(one.n_lesions for one in foreseen) == trial.known.n_lesioned
    assert foreseen[0].n_lesions > foreseen[1].n_lesions  # the second has the modules of the first
