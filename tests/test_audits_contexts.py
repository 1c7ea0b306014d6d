"""An audit of a language model shows where in the text its groups answer; the page shows it as text, and as nothing else."""

import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from specialize_nb.audits.audit import Audit, audit
from specialize_nb.audits.report import write_report
from specialize_nb.training.models import transformer

WORDS = ["<b>", "&amp;", "'\"", "\n", "\u202e", "é", "∅", "{{ x }}", " a", "b "]


@pytest.fixture(scope="module")
def audited():
    ids = torch.randint(9, (24, 8), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((24, 1), -100)], 1)
    options = dict(k=3, graphs=("weights",), scopes=("global",), n_controls=19, n_boot=5, matched=False, n_exhibits=2)
    return audit(transformer(tokens=10, length=8, width=8, heads=2, depth=1), (ids, targets), words=WORDS, **options)


def test_contexts_are_of_the_groups_at_the_head_of_the_list(audited):
    (name,) = audited.contexts
    found, rows = audited.contexts[name], audited.verdicts()
    assert name == "weights, global" and len(found.layers) == 2 == len(found.clusters)
    known = {(row.layer, row.cluster): row.n_units for row in rows.itertuples()}
    for layer, cluster, units in zip(found.layers, found.clusters, found.units, strict=True):
        assert known[layer, cluster] == len(units)
    (coherence,) = {one.coherence.outcomes for one in audited.findings}
    assert coherence == ("position_correlation", "next_token_information", "token_information")


def test_the_page_shows_them_as_text(audited, tmp_path):
    audited.save(tmp_path / "audit.npz")
    again = Audit.load(tmp_path / "audit.npz")
    assert_array_equal(again.contexts["weights, global"].tokens, audited.contexts["weights, global"].tokens)
    page = write_report(again, tmp_path / "page.html").read_text()
    part = page[page.index("<h3>Where the groups answer in the text</h3>") :]
    part = part[: part.index("</section>")]
    assert part.count("<figure>") == 2 and part.count("outline:2px") == 2 * 10
    shown = [re.sub(r"<[^>]+>", "", one) for one in re.findall(r"<bdi>(.*?)</bdi>", part)]
    assert len(shown) == 20 and "&lt;b&gt;" in part and "&amp;amp;" in part and "{{ x }}" in part
    assert "<b>" not in part and "\u202e" not in part and "\\u202e" in part and "⏎" in part
    assert part.count("raises most:") == sum(np.isfinite(audited.contexts["weights, global"].raised[:, 0]))
    assert "white-space: pre-wrap" in page


def test_no_tokens_no_contexts():
    ids = torch.rand(24, 6, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    options = dict(k=2, graphs=("weights",), scopes=("global",), n_controls=19, n_boot=5, n_visual=1, steps=1)
    found = audit(plain, (ids, ids[:, :3].argmax(1)), n_exhibits=1, matched=False, **options)
    assert found.contexts == {}
