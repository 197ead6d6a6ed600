"""Text to embeddings: a character-n-gram encoder that trains in seconds, any sentence-transformers model, a baseline.

An encoder has `features(texts)`, `forward(features) → [B, d]` with a gradient, and `encode(texts) → [B, d]` without.
"""

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lessons.losses import cosine
from gate_lessons.text import DEFAULT_STEPS, normalize

CONFIG, WEIGHTS = "config.json", "model.safetensors"
AT_ONCE = 4096  # sentences whose n-grams are counted at a time: a few MB


class Encoder(nn.Module):
    """What the trainer and the evaluation need of an encoder. Subclasses give `features` and `forward`.

    Attributes:
        learning_rate: that suits this kind of encoder, used where a recipe names none.
    """

    learning_rate: float

    def features(self, texts: Sequence[str]) -> Any:
        """Texts → whatever `forward` takes, on the CPU; no gradient."""
        raise NotImplementedError

    def table(self, texts: Sequence[str]) -> Callable[[Tensor], Any]:
        """Row numbers [n] of `texts` → the features of those rows, for who asks for the same texts again and again."""
        texts = list(texts)
        return lambda rows: self.features([texts[row] for row in rows])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embeddings [B, d] in float32 on the CPU, raw: normalise them, or compare by cosine.

        Raises:
            ValueError: an empty text (which one).
        """
        check_texts(texts)
        return self.encode_rows(self.table(texts), len(texts), batch_size)

    @torch.no_grad()
    def encode_rows(self, table: Callable[[Tensor], Any], count: int, batch_size: int = 256) -> Tensor:
        """The same for texts whose features are at hand: embeddings [count, d] of the rows of a `table`."""
        training = self.training
        self.eval()
        embeddings = torch.empty(0)
        for rows in torch.arange(count).split(batch_size):
            part = self(to_device(table(rows), self.device))
            if not len(embeddings):  # one place for all of them: parts in a list would leave holes in the memory
                embeddings = torch.empty(count, part.shape[1], dtype=torch.float32)
            embeddings[rows] = part.float().cpu()
        self.train(training)
        return embeddings

    def similarity(self, texts1: Sequence[str], texts2: Sequence[str]) -> np.ndarray:
        """Cosine similarity [B] of each text of the first list with its partner in the second."""
        return cosine(self.encode(texts1), self.encode(texts2)).numpy()


class Bag(NamedTuple):
    """Sentences as bags of n-gram numbers: all numbers in a row, and where each sentence begins."""

    ngrams: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> "Bag":
        return Bag(self.ngrams.to(device), self.offsets.to(device))


class Ragged:
    """Lists of numbers of different lengths, in one array, from which any can be gathered without a loop."""

    def __init__(self, lists: Sequence[Sequence[int] | np.ndarray]) -> None:
        lengths = np.array([len(numbers) for numbers in lists], np.int64)
        self.lengths, self.starts = lengths, np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self.numbers = np.concatenate([np.empty(0, np.int32), *(np.asarray(n, np.int32) for n in lists)])

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of these rows one after the other, and where in the result each begins."""
        lengths = self.lengths[rows]
        begins = np.cumsum(lengths) - lengths
        steps = np.arange(lengths.sum()) - np.repeat(begins, lengths)
        return self.numbers[np.repeat(self.starts[rows], lengths) + steps], begins


class NGramEncoder(Encoder):
    """A sentence is the weighted sum of the vectors of its words' character n-grams (Wieting et al. 2016; fastText).

    Untrained it is close to TF-IDF: random vectors keep the cosines of what they are summed from, and the weights
    start at the inverse document frequency once `fit_idf` has seen texts. Training moves vectors and weights.

    Args:
        width: d of the embeddings.
        buckets: rows of the table; n-grams share a row when their hashes meet (fastText's trick), so no text is
            out of vocabulary.
        ngram_range: shortest and longest n-gram, counted with the spaces around the word.
        steps: of the normalisation, see `text.STEPS`.
        seed: of the initial vectors.
    """

    learning_rate = 0.03  # chosen on the corpus's dev split; a table of n-grams wants far more than a transformer

    def __init__(
        self,
        width: int = 128,
        buckets: int = 2**15,
        ngram_range: tuple[int, int] = (2, 5),
        steps: Sequence[str] = DEFAULT_STEPS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = {
            "width": width,
            "buckets": buckets,
            "ngram_range": list(ngram_range),
            "steps": list(steps),
            "seed": seed,
        }
        vectors = torch.randn(buckets, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        self.vectors = nn.EmbeddingBag.from_pretrained(vectors, freeze=False, mode="sum")
        self.log_weight = nn.Parameter(torch.zeros(buckets))
        self._hasher = _hasher(buckets, tuple(ngram_range))
        self._words: dict[str, np.ndarray] = {}  # a sentence's n-grams are those of its words, and words come back

    def features(self, texts: Sequence[str]) -> Bag:
        return self.table(texts)(torch.arange(len(texts)))

    def table(self, texts: Sequence[str]) -> Callable[[Tensor], Bag]:
        """Sentences are kept as numbers of words, words as numbers of n-grams; a batch is gathered from the two."""
        sentences = [normalize(text, self.config["steps"]).split() for text in texts]
        words = sorted(set(chain.from_iterable(sentences)))
        if new := [word for word in words if word not in self._words]:
            self._words.update(zip(new, self._ngrams(new), strict=True))
        number = {word: row for row, word in enumerate(words)}
        words_of = Ragged([[number[word] for word in sentence] for sentence in sentences])
        ngrams_of = Ragged([self._words[word] for word in words])

        def gather(rows: Tensor) -> Bag:
            words, first_word = words_of.rows(rows.numpy())
            ngrams, first_ngram = ngrams_of.rows(words)
            # A sentence begins with the first n-gram of its first word; one without words begins where the next does.
            offsets = np.append(first_ngram, len(ngrams))[first_word]
            return Bag(torch.from_numpy(ngrams), torch.from_numpy(offsets.astype(np.int32)))

        return gather

    def forward(self, features: Bag) -> Tensor:
        """Embeddings [B, d]."""
        ngrams, offsets = features
        # `log_weight[ngrams]` would add up its gradient in an order that changes from run to run (on the CPU).
        weights = self.log_weight.index_select(0, ngrams).exp()
        return self.vectors(ngrams, offsets, per_sample_weights=weights)

    @torch.no_grad()
    def fit_idf(self, texts: Sequence[str]) -> "NGramEncoder":
        """Start the weights at the smoothed inverse document frequency of `texts` (scikit-learn's formula)."""
        check_texts(texts)
        frequency = np.zeros(self.config["buckets"], np.int64)
        for start in range(0, len(texts), AT_ONCE):
            some = [normalize(text, self.config["steps"]) for text in texts[start : start + AT_ONCE]]
            frequency += np.bincount(self._hasher.transform(some).indices, minlength=len(frequency))
        idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
        self.log_weight.copy_(torch.from_numpy(idf / idf.max()).log())
        return self

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "NGramEncoder":
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is no saved encoder: it has no {name}")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "buckets" not in config:
            raise ValueError(f"{folder / CONFIG} describes no NGramEncoder: it has no 'buckets'")
        encoder = cls(**config)
        encoder.load_state_dict(load_file(folder / WEIGHTS))
        return encoder

    def _ngrams(self, words: list[str]) -> list[np.ndarray]:
        counts = self._hasher.transform(words)
        ngrams = np.repeat(counts.indices, counts.data.astype(int)).astype(np.int32)
        ends = np.cumsum(counts.data.astype(int))
        return np.split(ngrams, [ends[row - 1] if row else 0 for row in counts.indptr[1:-1]])


class SentenceTransformerEncoder(Encoder):
    """Any sentence-transformers model, by hub name or local folder, under the same three methods (extra `hub`)."""

    learning_rate = 2e-5

    def __init__(self, name: str | Path) -> None:
        super().__init__()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ValueError(f"encoder {name!r} needs the extra `hub`: pip install 'gate-lessons[hub]'") from None
        self.model = SentenceTransformer(str(name), device="cpu")

    def features(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self.model.preprocess(list(texts))

    def table(self, texts: Sequence[str]) -> Callable[[Tensor], dict[str, Tensor]]:
        """A model that only looks tokens up (`StaticEmbedding`) has its texts split into tokens once."""
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        if not isinstance(self.model[0], StaticEmbedding):
            return super().table(texts)
        bags = self.features(texts)
        tokens = Ragged(np.split(bags["input_ids"].numpy(), bags["offsets"].numpy()[1:]))

        def gather(rows: Tensor) -> dict[str, Tensor]:
            ids, begins = tokens.rows(rows.numpy())
            return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(begins.astype(np.int32))}

        return gather

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Embeddings [B, d]."""
        return self.model(dict(features))["sentence_embedding"]

    def save(self, folder: str | Path) -> None:
        """Write the model as sentence-transformers does."""
        self.model.save_pretrained(str(folder))


def make_encoder(name: str = "ngram", texts: Sequence[str] = (), seed: int = 0) -> Encoder:
    """`ngram` (fresh, its weights fitted on `texts`), a folder that `NGramEncoder.save` wrote, or a model's name."""
    if name == "ngram":
        encoder = NGramEncoder(seed=seed)
        return encoder.fit_idf(texts) if len(texts) else encoder
    config = Path(name) / CONFIG
    if config.is_file() and "buckets" in json.loads(config.read_text(encoding="utf-8")):
        return NGramEncoder.load(name)
    return SentenceTransformerEncoder(name)


class LexicalBaseline:
    """TF-IDF over character 2–5-grams within words, sublinear, after normalisation: what spelling alone can say.

    Args:
        texts: the training split, on which the document frequencies are counted.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        check_texts(texts)
        self.tfidf = TfidfVectorizer(preprocessor=normalize, analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self.tfidf.fit(texts)

    def similarity(self, texts1: Sequence[str], texts2: Sequence[str]) -> np.ndarray:
        """Cosine similarity [B] of each text of the first list with its partner in the second."""
        return np.asarray(self.tfidf.transform(texts1).multiply(self.tfidf.transform(texts2)).sum(axis=1)).ravel()


def to_device(features: Any, device: torch.device) -> Any:
    """What `features` gave, a `Bag` or a dictionary of tensors, on a device."""
    if isinstance(features, dict):
        return {name: tensor.to(device) for name, tensor in features.items()}
    return features.to(device)


def check_texts(texts: Sequence[str]) -> None:
    """Raise a ValueError for no texts at all, or for one that is empty (which)."""
    if not len(texts):
        raise ValueError("no texts to encode")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {number} is empty: {text!r}; every text must be a non-empty string")


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, so that their dot product is their cosine."""
    return F.normalize(embeddings, dim=-1)


def _hasher(buckets: int, ngram_range: tuple[int, int]):
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        analyzer="char_wb",
        ngram_range=ngram_range,
        n_features=buckets,
        norm=None,
        alternate_sign=False,
        lowercase=False,
    )
