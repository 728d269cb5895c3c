"""Penn Treebank at word level, read as one long text with the state carried along."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectral_triton.experiments.errors import DataError, UsageError
from spectral_triton.experiments.tasks.classification import IGNORED, cross_entropy
from spectral_triton.experiments.tasks.settings import Settings
from spectral_triton.experiments.tasks.storage import DataFolder, are_known, read_intact
from spectral_triton.experiments.tasks.task import Batch, Metric, Tally, Task

END, UNKNOWN = "<eos>", "<unk>"
EVALUATION_STREAMS = 20
PREFIXES, ENDINGS = ("", "wiki.", "ptb."), (".txt", ".tokens", ".raw", "")


@dataclass(frozen=True)
class TextFile:
    """A file of the corpus: its name, its checksum and how many tokens it holds."""

    name: str
    sha256: str | None
    tokens: int | None


FILES = {
    "train": TextFile(
        "ptb.train.txt",
        "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        929_589,
    ),
    "validation": TextFile(
        "ptb.valid.txt",
        "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        73_760,
    ),
    "test": TextFile(
        "ptb.test.txt",
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        82_430,
    ),
}
ADVICE = (
    "The Penn Treebank is licensed and never fetched: bring the three word-level files of the "
    "Mikolov preprocessing, or train.txt, valid.txt and test.txt of any other text."
)


def read_words(path: Path) -> list[str]:
    """The words of a file with the end of each line as a token of its own.

    Raises:
        DataError: if the file is damaged, empty or not text.
    """
    return _words(path, read_intact(path))


def _words(path: Path, content: bytes) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    words = [word for line in text.splitlines() for word in (*line.split(), END)]
    if not words:
        raise DataError(f"{path} is empty")
    return words


def names_of(split: str) -> list[str]:
    """Under which names the text of a split is looked for; WikiText's is ``wiki.train.tokens``."""
    names = ["valid", "validation", "val", "dev"] if split == "validation" else [split]
    others = [f"{prefix}{n}{end}" for n in names for prefix in PREFIXES for end in ENDINGS]
    return [FILES[split].name, *others]


@dataclass(frozen=True)
class Corpus:
    """A vocabulary, most frequent word first, and each file as a vector of word numbers."""

    vocabulary: tuple[str, ...]
    tokens: dict[str, Tensor]


def read_corpus(data: DataFolder) -> Corpus:
    """Reads the three files; the vocabulary is that of the training file.

    Words of another corpus that the training file lacks become ``<unk>``. Where that has none, so
    do the words that it holds only once, so that there is something to learn of it.

    Raises:
        DataError: if a file is missing or damaged, or the Penn Treebank has words of its own.

    Warns:
        UserWarning: if the files are another corpus; says what was read.
    """
    paths = data.find_all(
        "ptb", {FILES[split].name: names_of(split) for split in FILES}, advice=ADVICE
    )
    contents = {path: read_intact(path) for path in paths.values()}
    words = {s: _words(paths[file.name], contents[paths[file.name]]) for s, file in FILES.items()}
    known = are_known(contents, {paths[file.name]: file.sha256 for file in FILES.values()})
    counts = Counter(words["train"])
    if known:
        for split, file in FILES.items():
            if file.tokens is not None and len(words[split]) != file.tokens:
                raise DataError(
                    f"{paths[file.name]} has {len(words[split])} tokens, expected {file.tokens}"
                )
    elif UNKNOWN not in counts and any(set(text) - counts.keys() for text in words.values()):
        once = {word for word, count in counts.items() if count == 1 and word != END}
        words["train"] = [UNKNOWN if word in once else word for word in words["train"]]
        counts = Counter(words["train"])
        counts[UNKNOWN] += 0
    vocabulary = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokens, replaced = {}, {}
    for split, sequence in words.items():
        unknown = sorted(set(sequence) - numbers.keys())
        if unknown and known:
            raise DataError(
                f"{paths[FILES[split].name]} has {len(unknown)} words that the training file "
                f"lacks, such as {unknown[0]!r}"
            )
        of_unknown = numbers.get(UNKNOWN, -1)
        tokens[split] = torch.tensor([numbers.get(word, of_unknown) for word in sequence])
        replaced[split] = sum(word not in numbers for word in sequence)
    if not known:
        said = ", ".join(
            f"{len(words[split])} {split} ({replaced[split]} unknown)" for split in words
        )
        warnings.warn(
            f"the files in {paths[FILES['train'].name].parent} are whole, but not the Penn "
            f"Treebank: read as another corpus of {said} tokens, vocabulary of {len(vocabulary)}",
            stacklevel=2,
        )
    return Corpus(vocabulary, tokens)


class PennTreebank(Task):
    """Predicting the next word; each batch goes on where the last one stopped.

    The text is cut into ``batch_size`` streams read side by side, ``window`` words at a time:
    gradients stop at the window's beginning, the state does not. Evaluation predicts every word
    but the first one.

    Args:
        corpus: Vocabulary and word numbers.
        batch_size: Streams.
        window: Words through which gradients flow.

    Raises:
        UsageError: if ``window < 1`` or the text is too short for so many streams.

    References:
        Mikolov et al. Recurrent neural network based language model. Interspeech 2010.
    """

    name = "ptb"
    options: ClassVar[dict[str, Any]] = {"window": 35}
    reads_tokens = True
    answers_every_step = True
    carries_state = True

    steps_per_epoch: int

    def __init__(self, corpus: Corpus, batch_size: int, *, window: int) -> None:
        self.check_options({"window": window})
        self.corpus, self.window = corpus, window
        self.input_size = self.output_size = len(corpus.vocabulary)
        text = corpus.tokens["train"]
        length = (len(text) - 1) // batch_size
        if length < 1:
            raise UsageError(f"--batch-size {batch_size} is more than the text has words")
        self.inputs = text[: batch_size * length].reshape(batch_size, length).t()
        self.targets = text[1 : batch_size * length + 1].reshape(batch_size, length).t()
        self.steps_per_epoch = -(-length // window)
        self.metric = Metric(
            name="perplexity",
            label="perplexity",
            baseline=unigram_perplexity(text, corpus.tokens["test"], self.input_size),
            baseline_label="word frequencies alone",
            log_scale=True,
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if options["window"] < 1:
            raise UsageError(f"--window must be at least 1, not {options['window']}")

    @classmethod
    def defaults(cls, model: str, options: Mapping[str, Any]) -> Settings:
        # Words matter for a few steps and then should fade: a wide band around random rotations.
        return Settings(
            epochs=3,
            hidden_size=200,
            batch_size=20,
            nonlinearity="tanh",
            init="haar",
            margin=0.5,
            lr=3e-3,
            reflectors_lr=3e-3,
            singular_values_lr=1.5e-2,
            evaluations=12,
        )

    @classmethod
    def build(
        cls,
        options: Mapping[str, Any],
        settings: Settings,
        *,
        seed: int,
        dtype: torch.dtype,
        data: DataFolder,
    ) -> PennTreebank:
        return cls(read_corpus(data), settings.batch_size, **options)

    def train_batch(self, step: int) -> Batch:
        position = step % self.steps_per_epoch
        window = slice(position * self.window, (position + 1) * self.window)
        return Batch(self.inputs[window], self.targets[window], fresh=position == 0)

    def batches(self, split: str) -> Iterator[Batch]:
        text = self.corpus.tokens[split]
        inputs = in_streams(text[:-1], filler=0)
        targets = in_streams(text[1:], filler=IGNORED)
        for start in range(0, len(inputs), self.window):
            window = slice(start, start + self.window)
            yield Batch(inputs[window], targets[window], fresh=start == 0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def tally(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tally:
        count = int((targets != IGNORED).sum())
        return Tally(loss=float(loss) * count, count=count)

    def results(self, tally: Tally) -> dict[str, float]:
        loss = tally.loss / tally.count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def in_streams(tokens: Tensor, *, filler: int) -> Tensor:
    """Tokens (N,) as columns (ceil(N / streams), streams), the last ones filled up."""
    streams = min(EVALUATION_STREAMS, len(tokens))
    length = -(-len(tokens) // streams)
    filled = torch.nn.functional.pad(tokens, (0, streams * length - len(tokens)), value=filler)
    return filled.reshape(streams, length).t()


def unigram_perplexity(train: Tensor, test: Tensor, words: int) -> float:
    """Perplexity of the test text under the frequencies of the training text."""
    # At least 1, as for a word of test that training never saw.
    frequencies = torch.bincount(train, minlength=words).clamp_min(1).double() / len(train)
    return float(frequencies[test[1:]].log().mean().neg().exp())
