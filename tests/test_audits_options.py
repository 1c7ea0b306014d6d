"""Options that several functions take have one default, one type and one comment: lists of them cannot drift apart."""

import pytest

from specialize_nb.audits.sources import file_of
from specialize_nb.base.signatures import parameters

FUNCTIONS = (
    "lesions.importance.importance",
    "lesions.importance.LesionOptions",
    "responses.coherence.coherence",
    "responses.coherence.CoherenceOptions",
    "lesions.interactions.interactions",
    "lesions.attribution.attribution",
    "lesions.plan.plan",
    "audits.audit.audit",
    "audits.audit.plan_audit",
)

APART = {  # Option -> functions for which it is another thing than for the rest; each group agrees in itself
    "model": ["audit plan_audit"],  # they split the data, so they take no `Subject`
    "data": ["audit plan_audit"],  # of several tasks as well
    "by": ["LesionOptions CoherenceOptions", "audit plan_audit"],  # as checked; the task of each example
    "n_controls": ["interactions", "attribution"],  # no `Sequential` design
    "outcomes": ["coherence CoherenceOptions"],  # measures of coherence, not of damage
    "n_jobs": ["coherence CoherenceOptions"],  # threads, which share what is read of the data
    "n_visual": ["coherence CoherenceOptions"],  # an audit makes pictures of what it shows, unless others are asked for
    "n_boot": ["coherence CoherenceOptions"],  # of images, and of the controls of pictures
    "store": ["plan plan_audit"],  # read, not written
    "seed": ["coherence CoherenceOptions", "plan", "audit", "plan_audit"],  # each says what it seeds
    "alpha": ["interactions"],
    "probe_seconds": ["plan_audit"],  # of a run that is planned on the way to something else
}


INNER = {"n_tried"}  # Set by what plans lesions, and no option of a function


def taken():
    "Option -> function -> its type, default and comment."
    found = {}
    for path in FUNCTIONS:
        for one in parameters(*file_of(path)):
            told = one.annotation, one.default, one.comment
            found.setdefault(one.name, {})[path.rpartition(".")[2]] = told
    return found


TAKEN = taken()


@pytest.mark.parametrize("option", [name for name, own in TAKEN.items() if len(own) > 1])
def test_a_shared_option_is_one_thing(option):
    own, groups = TAKEN[option], [words.split() for words in APART.get(option, [])]
    apart = {name for group in groups for name in group}
    told = [{own[name] for name in group} for group in [[name for name in own if name not in apart], *groups] if group]
    assert all(len(one) == 1 for one in told), {name: own[name] for name in own}
    assert len(set.union(*told)) == len(told), f"{option} is the same thing for some that are named in APART"


def test_exceptions_are_of_options_that_there_are():
    assert all(name in TAKEN[option] for option, groups in APART.items() for name in " ".join(groups).split())


def test_what_an_audit_passes_on_is_what_its_rooms_take():
    "Every option of lesions and of coherence is one of the audit, but what a kind of graph decides."
    rooms = {one.name for path in FUNCTIONS[1:4:2] for one in parameters(*file_of(path))} - INNER
    assert rooms <= set(TAKEN) and all("audit" in TAKEN[name] for name in rooms)
    lesions = {one.name for one in parameters(*file_of(FUNCTIONS[1]))} - INNER
    assert lesions <= {one.name for one in parameters(*file_of(FUNCTIONS[-1]))}
