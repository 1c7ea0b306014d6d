"""The two kinds of evidence of several partitions, drawn look by look as one audit's lists."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from specialize_nb.audits import lockstep
from specialize_nb.audits.lockstep import measure_together
from specialize_nb.clusters.partition import Partition
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.lesions.importance import (
    LesionOptions,
    importance,
    judge_importance,
    measure_importance,
    prepare_importance,
)
from specialize_nb.network.subject import Subject
from specialize_nb.responses.coherence import (
    CoherenceOptions,
    CoherenceTally,
    judge_coherence,
    measure_coherence,
    prepare_coherence,
)
from specialize_nb.stats.sequential import Sequential, Standing, undecided

DESIGN = Sequential(first=19, most=199)
LOSS = dict(outcomes="cross_entropy", matched=False, n_boot=5)
ALIKE = dict(outcomes="correlation", n_boot=5)


@pytest.fixture(scope="module")
def planted():
    """A network of two modules, its partition by modules, and labels dealt at random."""
    found = planted_mlp(hidden=(16, 16))
    rng = np.random.default_rng(0)
    modules = Partition.from_labels({name: found.labels[name] for name in ("0", "2")})
    dealt = Partition.from_labels({name: rng.permutation(one) for name, one in modules.labels.items()})
    return Subject.of(found.model, (found.x, found.y)), [modules, dealt]


def prepared(subject, partitions, n_controls, **changes):
    """Lesions of all partitions, and the layers of each whose coherence is measured."""
    trial = prepare_importance(subject, partitions, LesionOptions(n_controls=n_controls, **(LOSS | changes)))
    works = [prepare_coherence(subject, one, CoherenceOptions(n_controls=n_controls, **ALIKE)) for one in partitions]
    return trial, works, {i: [CoherenceTally(work, name) for name in work.layers] for i, work in enumerate(works)}


def judged(works, agreements):
    return [judge_coherence(work, [(one, one.on_data()) for one in agreements[i]]) for i, work in enumerate(works)]


def test_a_fixed_number_is_what_each_kind_draws_alone(planted):
    subject, partitions = planted
    trial, works, agreements = prepared(subject, partitions, 39)
    assert measure_together(trial, agreements) == {}
    coherent = judged(works, agreements)
    for i, one in enumerate(judge_importance(trial)):
        alone = importance(subject, None, partitions[i], n_controls=39, **LOSS)
        assert_allclose(one.draws["cross_entropy"], alone.draws["cross_entropy"], rtol=1e-6, atol=2e-6, strict=True)
        assert one.n_drawn == {} and len(one.draws["cross_entropy"]) == 39
        apart = judge_coherence(works[i], measure_coherence(works[i]))
        assert_allclose(
            coherent[i].draws["correlation"], apart.draws["correlation"], rtol=1e-9, atol=1e-12, strict=True
        )


def test_a_design_stops_where_verdicts_are_clear(planted):
    subject, partitions = planted
    trial, works, agreements = prepared(subject, partitions, DESIGN)
    measure_together(trial, agreements)
    drawn = [tally.n_drawn for (tally,) in trial.tallies]
    assert set(np.concatenate(drawn)) <= set(DESIGN.looks) and not any(t.going.any() for (t,) in trial.tallies)
    assert not any(one.going.any() for some in agreements.values() for one in some)
    # modules are on both lists; labels dealt at random are given up before the end, on at least one of them
    found, coherent = judge_importance(trial), judged(works, agreements)
    for evidence, name in ((found, "cross_entropy"), (coherent, "correlation")):
        assert (evidence[0].p_values(name) <= 0.05).all()
    assert min(drawn[1].min(), min(one.n_drawn.min() for one in agreements[1])) < DESIGN.most
    # the controls that were drawn are the first of those of a fixed number
    many = importance(subject, None, partitions[1], n_controls=DESIGN.most, **LOSS).draws["cross_entropy"]
    for i, n in enumerate(drawn[1]):
        few = found[1].draws["cross_entropy"][:n, i]
        assert_allclose(few, many[:n, i], rtol=1e-6, atol=2e-6, strict=True)


def test_all_partitions_are_one_list(planted, monkeypatch):
    """Each look asks once, of the sub-clusters of all partitions, at the places of their keys."""
    subject, partitions = planted
    trial, _, agreements = prepared(subject, partitions, DESIGN)
    asked = []

    def told(first, second, design):
        asked.append((first, second, design))
        assert first.counts.shape == second.counts.shape == (len(DESIGN.looks), 8)
        return np.arange(8) == 5, np.arange(8) == 2  # one sub-cluster of each kind goes on

    monkeypatch.setattr(lockstep, "undecided_pairs", told)
    measure_together(trial, agreements)
    assert len(asked) == len(DESIGN.looks) and asked[0][2] is DESIGN
    lesioned = np.concatenate([tally.n_drawn for (tally,) in trial.tallies])
    agreed = np.concatenate([one.n_drawn for some in agreements.values() for one in some])
    assert lesioned.tolist() == [DESIGN.looks[0]] * 5 + [DESIGN.most] + [DESIGN.looks[0]] * 2
    assert agreed.tolist() == [DESIGN.looks[0]] * 2 + [DESIGN.most] + [DESIGN.looks[0]] * 5


def test_matched_controls_are_a_list_of_their_own(planted, monkeypatch):
    subject, partitions = planted
    trial, _, agreements = prepared(subject, partitions, DESIGN, matched=True)
    sizes = []

    def none(standing, design):
        sizes.append(len(standing.n_drawn))
        return np.zeros(len(standing.n_drawn), dtype=bool)

    monkeypatch.setattr(lockstep, "undecided", none)
    measure_together(trial, agreements)
    matched = [tally for _, tally in trial.tallies]
    assert sizes == [sum(len(tally.n_drawn) for tally in matched)] * len(DESIGN.looks)
    assert all((tally.n_drawn == DESIGN.looks[0]).all() for tally in matched)


def test_lesions_alone_go_as_they_do_by_themselves(planted):
    subject, partitions = planted
    trial = prepare_importance(subject, partitions, LesionOptions(n_controls=DESIGN, **LOSS))
    alone = prepare_importance(subject, partitions, LesionOptions(n_controls=DESIGN, **LOSS))
    assert measure_together(trial, {}) == {}
    measure_importance(alone)
    for (one,), (other,) in zip(trial.tallies, alone.tallies, strict=True):
        assert one.n_drawn.tolist() == other.n_drawn.tolist()
        np.testing.assert_array_equal(one.damage["cross_entropy"], other.damage["cross_entropy"])


def test_equal_groups_of_two_partitions_are_lesioned_once(planted):
    subject, (modules, _) = planted
    renamed = Partition.from_labels({name: 7 - one for name, one in modules.labels.items()})
    alone, _, _ = prepared(subject, [modules], DESIGN, matched=True)
    both, _, agreements = prepared(subject, [modules, renamed], DESIGN, matched=True)
    measure_together(alone, {})
    measure_together(both, {})
    assert both.known.n_lesioned == alone.known.n_lesioned < both.known.n_asked / 2
    for one, other in zip(*both.tallies, strict=True):
        assert np.array_equal(
            np.sort(one.damage["cross_entropy"]), np.sort(other.damage["cross_entropy"]), equal_nan=True
        )


def test_coherence_without_lesions_has_no_hope_on_the_other_list(planted):
    """Partitions beyond those of the trial are judged by what they have: a list of one kind stops by itself."""
    subject, partitions = planted
    trial, works, agreements = prepared(subject, partitions, DESIGN)
    only = prepare_importance(subject, [], LesionOptions(n_controls=DESIGN, **LOSS))
    assert measure_together(only, {2: agreements[0]}) == {}
    expected = [CoherenceTally(works[0], one.layer) for one in agreements[0]]
    for n in DESIGN.looks:
        for one in expected:
            one.grow(n)
        going = undecided(Standing.joined([one.standing() for one in expected]), DESIGN)
        for one, part in zip(expected, np.split(going, [len(expected[0].going)]), strict=True):
            one.going = part
    assert [one.n_drawn.tolist() for one in agreements[0]] == [one.n_drawn.tolist() for one in expected]


def test_what_fails_is_told_and_the_rest_goes_on(planted, monkeypatch):
    subject, partitions = planted
    trial, works, agreements = prepared(subject, partitions, DESIGN)
    broken = agreements[0][1]
    monkeypatch.setattr(broken, "grow", lambda n: (_ for _ in ()).throw(RuntimeError("no answers")))
    failed = measure_together(trial, agreements)
    assert list(failed) == [broken] and str(failed[broken]) == "no answers"
    assert (broken.n_drawn == -1).all() and not broken.going.any()
    others = [one for some in agreements.values() for one in some if one is not broken]
    assert all((one.n_drawn >= DESIGN.looks[0]).all() for one in others)
    assert all((tally.n_drawn >= DESIGN.looks[0]).all() for (tally,) in trial.tallies)


def test_a_failing_lesion_is_raised(planted):
    subject, partitions = planted
    trial, _, agreements = prepared(subject, partitions, 19)

    def broken(*args, **options):
        raise MemoryError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lockstep, "grow_tallies", broken)
        with pytest.raises(MemoryError, match="out of memory"):
            measure_together(trial, agreements)


def test_pictures_steer_where_they_come_first(planted):
    """They are drawn look by look, as many as real data; beside another outcome their number is fixed."""
    found = planted_mlp(hidden=(16, 16))
    x = found.x.unflatten(1, (1, 1, -1))
    model = torch.nn.Sequential(torch.nn.Flatten(), *found.model).eval()
    subject = Subject.of(model, (x, found.y))
    labels = {name: found.labels[str(int(name) - 1)] for name in subject.network.hidden}
    partition = Partition.from_labels(labels)
    trial = prepare_importance(subject, [partition], LesionOptions(n_controls=DESIGN, **LOSS))
    options = CoherenceOptions(n_controls=DESIGN, outcomes=("visual_score", "correlation"), steps=2, n_boot=5)
    work = prepare_coherence(subject, partition, options)
    agreements = {0: [CoherenceTally(work, name) for name in work.layers]}
    assert measure_together(trial, agreements) == {}
    for one in agreements[0]:
        assert set(one.n_drawn) <= set(DESIGN.looks)
        for rows in (one.on_pictures()["visual_score"][0], one.on_data()["correlation"][0]):
            assert np.array_equal(np.isfinite(rows).sum(0), 1 + one.n_drawn)
