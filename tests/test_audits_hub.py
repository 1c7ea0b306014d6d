"""Models and texts from local folders: the same numbers as the library gives, and clear words where something lacks."""

import json

import pytest
import torch

from specialize_nb.audits.audit import Audit
from specialize_nb.audits.cli import main
from specialize_nb.audits.hub import load_folder, text_file
from specialize_nb.audits.sources import UserError, load_data, load_model
from specialize_nb.base.text import to_tokens
from specialize_nb.network.units import trace

WORDS = "the cat sat on the mat and the dog sat on the log . " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small GPT-2 with random weights and a tokenizer of words."""
    hf, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    where = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["<unk>", *dict.fromkeys(WORDS.split())])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(where)
    sizes = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=len(vocabulary), n_positions=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(WORDS, encoding="utf-8")
    return path


def test_a_folder_is_the_model_that_was_saved(folder):
    hf = pytest.importorskip("transformers")
    model, plain = load_folder(folder), hf.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.arange(12).view(2, 6) % 5
    assert not model.training and model.config.use_cache is False
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert next(layer.name for layer in trace(model, ids).layers) == "transformer.wte"


def test_a_text_is_cut_into_sequences(folder, story):
    hf = pytest.importorskip("transformers")
    x, y = text_file(f"text:{story}", length=10, tokenizer=str(folder))
    ids = hf.AutoTokenizer.from_pretrained(folder)(WORDS)["input_ids"]
    assert (
        len(ids) == 420
        and x.flatten().tolist() == ids
        and torch.equal(y[:, :-1], x[:, 1:])
        and (y[:, -1] == -100).all()
    )
    letters = text_file(str(story), length=100)
    assert torch.equal(letters.x.flatten(), to_tokens(WORDS)[: letters.x.numel()])


def test_the_shell_audits_a_folder(folder, story, tmp_path, capsys):
    words = ["audit", f"hf:{folder}", "--data", f"text:{story}", "--length", "12", "--k", "2", "--graphs", "weights"]
    status = main([*words, "--scopes", "local", "--n-boot", "5", "--n-jobs", "1", "--out", str(tmp_path / "out")])
    said, told = capsys.readouterr()
    assert status == 0 and "in GPT2LMHeadModel" in said, told
    assert (tmp_path / "out" / "index.html").is_file()


def test_several_files_are_several_tasks(folder, story, tmp_path, capsys):
    """Named, or called after their files; the tasks are told apart, and one option goes to all of them."""
    other = tmp_path / "dogs.txt"
    other.write_text("the dog sat on the mat . the log and the cat sat . " * 30, encoding="utf-8")
    small = f"--length 12 --k 2 --graphs weights --scopes local --n-boot 2 --n-controls 19 --n-jobs 1 --examples 8 --out {tmp_path}/out"
    status = main(["audit", f"hf:{folder}", "--tasks", f"cats=text:{story}", f"dogs=text:{other}", *small.split()])
    said, told = capsys.readouterr()
    assert status == 0, told
    kept = Audit.load(tmp_path / "out" / "gpt2lmheadmodel" / "audit.npz")
    (found,) = kept.dissociations.values()
    assert found.tasks == ("cats", "dogs") and kept.settings["tasks"] == {"cats": 8, "dogs": 8}
    assert kept.data == f"cats: text:{story}; dogs: text:{other}" and found.in_words("weights, local")[0] in " ".join(
        said.split()
    )
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "<h3>Tasks</h3>" in page and all(f">{name}</th>" in page for name in found.tasks)


def test_what_lacks_is_told(folder, story, tmp_path):
    def told(match, do, kind=(ValueError, OSError)):
        with pytest.raises(kind, match=match):
            do()

    told("there is no such folder; save one there with save_pretrained", lambda: load_folder(tmp_path / "none"))
    told("there is no config.json in it", lambda: load_folder(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing known"}))
    told("cannot be read", lambda: load_folder(tmp_path))
    told("no tokenizer in .*: say with --tokenizer DIR", lambda: text_file(str(story), tokenizer=str(tmp_path)))
    told("no file .*: text:FILE reads a text of yours", lambda: text_file("text:none.txt"))
    told("has 420 tokens, and a sequence 500: give", lambda: text_file(str(story), length=500, tokenizer=str(folder)))
    told("a length from 2 to 420", lambda: text_file(str(story), length=1, tokenizer=str(folder)))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    told("is no text in UTF-8: invalid start byte at byte 0", lambda: text_file(str(tmp_path / "bytes.txt")))
    told("no folder .*: hf:FOLDER is one that save_pretrained", lambda: load_model("hf:none"), UserError)
    told("has its own weights: leave --weights out", lambda: load_model(f"hf:{folder}", weights="w.pt"), UserError)
    told("there is no config.json in it", lambda: load_model(f"hf:{story.parent}"), UserError)


def test_the_text_that_comes_with_python():
    words, data = load_data("text", domain="prose", examples=20)
    assert data.task == "dense" and data.n == 20 and words == "code and prose of Python, test split"
