import math

import pytest
import torch

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks import ptb
from spectral_triton.experiments.tasks.ptb import PennTreebank, in_streams, read_corpus, read_words
from spectral_triton.experiments.tasks.storage import DataFolder


def corpus_of(folder):
    return read_corpus(DataFolder(folder.parent))


def test_line_ends_are_words(tmp_path):
    (tmp_path / "a").write_text(" one two \n three \n")
    assert read_words(tmp_path / "a") == ["one", "two", "<eos>", "three", "<eos>"]


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\xff\xfe\n", "UTF-8")])
def test_what_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_words(tmp_path / "a")


def test_vocabulary_is_that_of_training_by_frequency(tiny_text):
    corpus = corpus_of(tiny_text)
    assert corpus.vocabulary == ("the", "<eos>", "<unk>", "cat", "dog", "sat")
    assert [corpus.vocabulary[i] for i in corpus.tokens["validation"]] == [
        "the",
        "dog",
        "sat",
        "<eos>",
    ]


def test_damaged_text_is_refused_by_checksum_and_by_length(tiny_text, monkeypatch):
    path = tiny_text / "ptb.valid.txt"
    path.write_text(path.read_text()[:-6])
    with pytest.raises(DataError, match=r"ptb.valid.txt.*sha256"):
        corpus_of(tiny_text)
    files = {s: ptb.TextFile(f.name, None, f.tokens) for s, f in ptb.FILES.items()}
    monkeypatch.setattr(ptb, "FILES", files)
    with pytest.raises(DataError, match=r"ptb.valid.txt has 3 tokens, expected 4"):
        corpus_of(tiny_text)


def test_word_unknown_to_training_is_refused(tiny_text, monkeypatch):
    (tiny_text / "ptb.test.txt").write_text("the bird sat\n")
    files = {s: ptb.TextFile(f.name, None, None) for s, f in ptb.FILES.items()}
    monkeypatch.setattr(ptb, "FILES", files)
    with pytest.raises(DataError, match="'bird'"):
        corpus_of(tiny_text)


def test_missing_text_is_named(tiny_text):
    (tiny_text / "ptb.train.txt").unlink()
    with pytest.raises(DataError, match=r"ptb.train.txt.*never fetched"):
        corpus_of(tiny_text)


def test_training_windows_join_into_the_text(tiny_text):
    corpus = corpus_of(tiny_text)
    task = PennTreebank(corpus, 3, window=4)
    text = corpus.tokens["train"]
    length = (len(text) - 1) // 3
    batches = [task.train_batch(step) for step in range(task.steps_per_epoch)]
    assert [batch.fresh for batch in batches] == [True] + [False] * (len(batches) - 1)
    inputs, targets = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets")
    )
    for stream in range(3):
        start = stream * length
        assert torch.equal(inputs[:, stream], text[start : start + length])
        assert torch.equal(targets[:, stream], text[start + 1 : start + length + 1])
    again = task.train_batch(task.steps_per_epoch)
    assert again.fresh
    assert torch.equal(again.inputs, batches[0].inputs)


def test_evaluation_predicts_every_word_but_the_first_once(tiny_text):
    corpus = corpus_of(tiny_text)
    task = PennTreebank(corpus, 3, window=2)
    batches = list(task.batches("train"))
    assert [batch.fresh for batch in batches] == [True] + [False] * (len(batches) - 1)
    targets = torch.cat([batch.targets for batch in batches]).t().flatten()
    assert torch.equal(targets[targets != ptb.IGNORED], corpus.tokens["train"][1:])


def test_streams_are_filled_up():
    assert in_streams(torch.arange(3), filler=9).tolist() == [[0, 1, 2]]
    streams = in_streams(torch.arange(41), filler=-1)
    assert streams.shape == (3, 20)
    assert streams[:, 0].tolist() == [0, 1, 2]
    assert streams[:, 13].tolist() == [39, 40, -1]


def test_baseline_is_the_loss_of_constant_log_frequencies(tiny_text):
    corpus = corpus_of(tiny_text)
    task = PennTreebank(corpus, 3, window=2)
    frequencies = torch.bincount(corpus.tokens["train"]).double() / len(corpus.tokens["train"])
    tally = ptb.Tally()
    for batch in task.batches("test"):
        outputs = frequencies.log().expand(*batch.targets.shape, -1)
        tally.add(task.tally(task.loss(outputs, batch.targets), outputs, batch.targets))
    assert tally.count == 7
    assert task.results(tally)["perplexity"] == pytest.approx(task.metric.baseline)
    assert task.results(tally)["loss"] == pytest.approx(math.log(task.metric.baseline))


def test_options_are_checked(tiny_text):
    corpus = corpus_of(tiny_text)
    with pytest.raises(UsageError, match="--window"):
        PennTreebank(corpus, 3, window=0)
    with pytest.raises(UsageError, match="--batch-size 1000"):
        PennTreebank(corpus, 1000, window=2)


def test_real_text(real_data):
    corpus = read_corpus(real_data)
    assert len(corpus.vocabulary) == 10_000
    assert {"<unk>", "<eos>"} < set(corpus.vocabulary)
    sizes = [len(corpus.tokens[split]) for split in ("train", "validation", "test")]
    assert sizes == [929_589, 73_760, 82_430]
    assert 500 < PennTreebank(corpus, 20, window=35).metric.baseline < 1000


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("train", "dev", "test"),
    ],
)
def test_any_other_text_is_read_with_a_warning(tmp_path, names):
    texts = "a a b b c\n" * 2 + "rare\n", "a new\n", "b c newer newest\n"
    for name, text in zip(names, texts, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    said = r"14 train \(0 unknown\), 3 validation \(1 unknown\), 5 test \(2 unknown\).* of 5$"
    with pytest.warns(UserWarning, match=said):
        corpus = read_corpus(DataFolder(tmp_path))
    assert set(corpus.vocabulary) == {"a", "b", "c", "<unk>", "<eos>"}
    words = {s: [corpus.vocabulary[i] for i in t] for s, t in corpus.tokens.items()}
    assert words["train"][-2:] == ["<unk>", "<eos>"]
    assert words["test"] == ["b", "c", "<unk>", "<unk>", "<eos>"]
    assert math.isfinite(PennTreebank(corpus, 2, window=3).metric.baseline)


def test_a_corpus_without_unknown_words_keeps_all_of_its_own(tmp_path):
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("\ufeffone two\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="vocabulary of 3"):
        corpus = read_corpus(DataFolder(tmp_path))
    assert set(corpus.vocabulary) == {"one", "two", "<eos>"}


def test_unknown_words_of_a_corpus_whose_words_all_repeat(tmp_path):
    for name, text in (("train.txt", "a a b b\n"), ("valid.txt", "a\n"), ("test.txt", "a z\n")):
        (tmp_path / name).write_text(text)
    with pytest.warns(UserWarning, match="vocabulary of 4"):
        corpus = read_corpus(DataFolder(tmp_path))
    assert math.isfinite(PennTreebank(corpus, 1, window=2).metric.baseline)
