"""Sequences of tokens that cannot be right, through the public functions: what was given, found and allowed is told."""

import numpy as np
import pytest
import torch

from specialize_nb import coherence, contrast_partition, dissociation, importance, next_token, top_contexts, trace
from specialize_nb.audits.cli import main
from specialize_nb.clusters.partition import Partition
from specialize_nb.training.models import transformer

IDS = torch.as_tensor(np.random.default_rng(0).integers(0, 20, (12, 8)))
X, Y = next_token(IDS)
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def model():
    return transformer(tokens=20, length=12, width=8, heads=2, depth=1)


@pytest.fixture(scope="module")
def gpt2():
    hf = pytest.importorskip("transformers")
    sizes = dict(vocab_size=20, n_embd=8, n_head=2, n_layer=1, n_positions=12, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def partition(model):
    network = trace(model, X[:2])
    n = network.layer(name := network.hidden[-1]).n_units
    return Partition.from_labels({name: np.arange(n) % 2})


LAYER = "transformer.h.0.mlp.c_fc"
NEURONS = Partition.from_labels({LAYER: np.arange(32) % 2})


@pytest.fixture(scope="module")
def network(gpt2):
    return trace(gpt2, {"input_ids": X[:2], "attention_mask": MASK[:2]})


def replaced(table, value, at):
    found = table.clone()
    found[at] = value
    return found


def judged(model, data, partition):
    """Every public function that judges groups on data, as calls."""
    few = dict(n_controls=19, n_boot=2)
    return {
        "importance": lambda: importance(model, data, partition, matched=False, **few),
        "coherence": lambda: coherence(model, data, partition, outcomes="correlation", **few),
        "dissociation": lambda: dissociation(
            model, {"one": (X, Y), "other": data}, partition, matched=False, n_controls=39, n_boot=2
        ),
    }


BAD = {
    "beyond the vocabulary": (
        (replaced(X, 99, (3, 2)), Y),
        r"is given 99 \(example 3, position 2\), and 'token' knows 0 to 19",
    ),
    "below 0": ((replaced(X, -100, (3, 2)), Y), r"is given -100 .* knows 0 to 19: give what the model's own tokenizer"),
    "floats": ((X.float(), Y), r"'token' looks up rows by whole numbers and gets float32: .* `ids.long\(\)`"),
    "nothing counts": (
        (X, torch.full_like(Y, -100)),
        "every target of examples 0, 1, .* is -100, so that no position counts",
    ),
    "nothing counts in one": (
        (X, replaced(Y, -100, 4)),
        "every target of example 4 is -100, .*: leave these examples out",
    ),
    "a flat sequence": ((X[0], Y[0]), r"one sequence of tokens is a table of one row, as ids\[None\]"),
    "other numbers": ((X, Y[:5]), r"inputs of shape \(12, 8\) and 5 labels: one label for each input"),
    "an empty batch": ((X[:0], Y[:0]), "gave no examples: pass at least one batch"),
    "rows of several lengths": (([[1, 2, 3], [1, 2]], Y[:2, :3]), "rows have lengths 2 to 3: fill the shorter ones up"),
    "words": ("some words", "make words tokens first, with the tokenizer of the model"),
    "lists of words": ((["some", "words"], Y[:2]), "make words tokens first, with the tokenizer of the model"),
}


@pytest.mark.parametrize("what", BAD)
def test_tokens_that_do_not_fit(what, model, partition):
    data, told = BAD[what]
    for name, call in judged(model, data, partition).items():
        with pytest.raises((ValueError, IndexError, TypeError), match=told):
            call()
            pytest.fail(name)


def test_targets_beyond_the_scores(model, partition):
    with pytest.raises(ValueError, match="example 2 has the class 25 at position 3, but the model scores 20"):
        importance(model, (X, replaced(Y, 25, (2, 3))), partition, n_controls=19)


def test_sequences_that_are_too_long_or_differ(model, partition):
    long = (X.repeat(1, 3), Y.repeat(1, 3))
    for call in (
        lambda: importance(model, long, partition),
        lambda: top_contexts(model, long, [("place", [0])]),
    ):
        with pytest.raises(IndexError, match="'place' has a row for each of 12 positions, and the sequences need 24"):
            call()
    with pytest.raises(ValueError, match=r"examples of tasks have different shapes, .*: cut or pad them to one"):
        dissociation(model, {"one": (X, Y), "other": (X[:, :5], Y[:, :5])}, partition)
    with pytest.raises(ValueError, match=r"`b` has inputs of shape .*, and `a` of .*: give inputs of one shape"):
        contrast_partition(model, X, X[:, :5])


def test_a_contrast_needs_two_kinds_of_input(model):
    for other in (X, X.flip(0)):
        with pytest.raises(ValueError, match="'a' and 'b' hold the same examples, 12 different ones"):
            contrast_partition(model, X, other)
    with pytest.raises(IndexError, match=r"on batch 0 of the data: it is given 99 \(example 3, position 2\)"):
        contrast_partition(model, X, replaced(X, 99, (3, 2)))
    with pytest.raises(ValueError, match="the data gave no examples"):
        contrast_partition(model, X, X[:0])


def test_one_token_has_none_to_follow(gpt2):
    with pytest.raises(ValueError, match="2 positions at least"):
        next_token(X[:, :1])
    with pytest.raises(ValueError, match=r"one token each, .* none follows another: give sequences of two tokens"):
        importance(gpt2, {"input_ids": X[:, :1], "labels": X[:, :1]}, NEURONS)


MASKS = {
    "another length": (
        MASK[:, :5],
        "'attention_mask' has 5 positions and 'input_ids' 8: give one number for each token",
    ),
    "fewer rows": (MASK[:5], "12 labels: one label for each input"),
    "a sequence of padding": (replaced(MASK, 0, 2), r"no position counts in 1 of 12 examples \(number 2\)"),
    "halves": (MASK * 0.5, "'attention_mask' holds 0.5 in batch 0: a token counts or it does not"),
}


@pytest.mark.parametrize("what", MASKS)
def test_masks_that_do_not_fit(what, gpt2, network):
    mask, told = MASKS[what]
    data = {"input_ids": X, "attention_mask": mask, "labels": X}
    few = dict(network=network, n_boot=2)
    for call in (
        lambda: importance(gpt2, data, NEURONS, n_controls=19, **few),
        lambda: coherence(gpt2, data, NEURONS, outcomes="correlation", n_controls=19, **few),
        lambda: dissociation(gpt2, {"one": data, "other": data}, NEURONS, n_controls=39, **few),
        lambda: top_contexts(gpt2, data, [(LAYER, [0])], network=network, n=1),
        lambda: contrast_partition(gpt2, data, {"input_ids": X.flip(1), "attention_mask": mask}, network),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_the_shell_says_it_in_one_line(tmp_path, capsys):
    """A tokenizer that is missing, one of another vocabulary, a text that is too short, and one that is none."""
    hf, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<unk>", "the", "cat", "sat", "on", "mat", *map(str, range(31))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(tmp_path / "tokenizer")
    sizes = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=12, n_positions=32, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)).save_pretrained(tmp_path / "model")
    story, numbers, none = (tmp_path / name for name in ("story.txt", "numbers.txt", "none.bin"))
    story.write_text("the cat sat on the mat . " * 40, encoding="utf-8")
    numbers.write_text(" ".join(map(str, range(30, 0, -1))) + " the cat" * 40, encoding="utf-8")
    none.write_bytes(b"\xff\xfe\x00")
    other = ["--tokenizer", str(tmp_path / "tokenizer")]

    def told(path, *more):
        words = ["audit", f"hf:{tmp_path / 'model'}", "--data", f"text:{path}", "--length", "8", *more]
        status = main([*words, "--graphs", "weights", "--k", "2", "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err.strip()
        assert status != 0 and "Traceback" not in said, said
        return said.splitlines()[-1]

    assert "no tokenizer in" in told(story) and "say with --tokenizer DIR where it is" in told(story)
    assert "knows 0 to 11" in told(numbers, *other)
    assert "280 tokens, and a sequence 500" in told(story, *other, "--length", "500")
    assert "is no text in UTF-8: invalid start byte at byte 0" in told(none, *other)
