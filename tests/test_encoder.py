import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer

from gate_lessons import encoder as encoders
from gate_lessons.encoder import (
    Encoder,
    LexicalBaseline,
    NGramEncoder,
    Ragged,
    SentenceTransformerEncoder,
    make_encoder,
    unit,
)
from gate_lessons.text import normalize

TEXTS = [
    "ذهب الطالبُ إلى المدرسة.",
    "الطالب الطالب في المدرسة!",  # a word twice: its n-grams count twice
    "يا",
    "فتح الطبيب باب العيادة في الصباح",
    "لم يفتح الطبيبُ باب العيادة، في الصباح",
    "أ ب ت",
]


def _small(**options) -> NGramEncoder:
    return NGramEncoder(**{"width": 16, "buckets": 512} | options)


def _hashed(texts: list[str], buckets: int, ngram_range: tuple[int, int] = (2, 5)):
    """Counts [B, buckets] of whole normalised sentences, by scikit-learn alone."""
    hasher = HashingVectorizer(
        analyzer="char_wb", ngram_range=ngram_range, n_features=buckets, norm=None, alternate_sign=False
    )
    return hasher.transform([normalize(text) for text in texts])


def _bags(encoder: NGramEncoder, texts: list[str]) -> list[Counter]:
    ngrams, offsets = encoder.features(texts)
    return [Counter(bag.tolist()) for bag in np.split(ngrams.numpy(), offsets[1:].tolist())]


# ---------------------------------------------------------------------------------------------- n-gram encoder


@pytest.mark.parametrize("buckets", [64, 2**15])  # few buckets: many n-grams meet in one
@pytest.mark.parametrize("ngram_range", [(2, 5), (3, 3)])
def test_features_are_the_ngrams_of_scikit_learn(buckets, ngram_range):
    encoder = NGramEncoder(width=4, buckets=buckets, ngram_range=ngram_range)
    expected = _hashed(TEXTS, buckets, ngram_range)
    for _ in range(2):  # the second time the words come out of the encoder's memory
        for bag, row in zip(_bags(encoder, TEXTS), expected, strict=True):
            assert bag == dict(zip(row.indices.tolist(), row.data.astype(int).tolist(), strict=True))


def test_an_embedding_is_the_weighted_sum_of_its_ngrams():
    encoder = _small().fit_idf(TEXTS)
    vectors = encoder.vectors.weight.detach().double().numpy()
    weights = np.exp(encoder.log_weight.detach().double().numpy())
    expected = np.zeros((len(TEXTS), 16))
    for row, counts in enumerate(_hashed(TEXTS, 512)):
        for ngram, count in zip(counts.indices, counts.data, strict=True):
            expected[row] += count * weights[ngram] * vectors[ngram]
    found = encoder.encode(TEXTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 4096])
def test_weights_are_the_smooth_idf_of_scikit_learn_scaled_to_one(monkeypatch, at_once):
    monkeypatch.setattr(encoders, "AT_ONCE", at_once)
    counts = _hashed(TEXTS, 512)
    idf = TfidfTransformer(smooth_idf=True).fit(counts).idf_
    encoder = _small().fit_idf(TEXTS)
    np.testing.assert_allclose(encoder.log_weight.detach().exp().numpy(), idf / idf.max(), rtol=1e-5)
    assert len(np.unique(idf)) > 3  # an encoder that ignored the texts would not pass


def test_encoding_does_not_depend_on_batch_size_or_order():
    encoder = _small().fit_idf(TEXTS)
    expected = encoder.encode(TEXTS)
    for size in (1, 4, 5, 6, 100):
        torch.testing.assert_close(encoder.encode(TEXTS, batch_size=size), expected, rtol=0, atol=1e-6)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = _small().fit_idf(TEXTS).encode([TEXTS[i] for i in order])
    torch.testing.assert_close(shuffled, expected[order], rtol=0, atol=1e-6)


def test_untrained_cosines_scatter_around_term_frequency_as_random_projections_do(groups):
    """A projection to d random directions turns a cosine c into about c ± (1 − c²)/√d (the delta method)."""
    texts1, texts2 = [g.anchor for g in groups[:100]], [g.sentences()["close"] for g in groups[:100]]
    counts = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), preprocessor=normalize).fit(texts1 + texts2)
    x, y = (counts.transform(texts).toarray().astype(float) for texts in (texts1, texts2))
    cosine = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    apart = cosine < 0.95  # the same words in another order have cosine 1, and no scatter
    assert apart.sum() > 40
    width, off = 64, []
    for seed in range(12):
        found = NGramEncoder(width=width, seed=seed).similarity(texts1, texts2)
        off.append(((found - cosine) * np.sqrt(width))[apart] / (1 - cosine[apart] ** 2))
    assert abs(np.mean(off)) < 0.25
    assert 0.85 < np.sqrt(np.mean(np.square(off))) < 1.15


def test_seeds_differ_and_repeat_without_touching_the_global_generator():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (_small(seed=seed).encode(TEXTS) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_steps_of_the_normalisation_are_those_asked_for():
    folded, raw = _small(), _small(steps=())
    assert torch.equal(*folded.encode(["إلى المَدرسة", "الى المدرسه"]))
    assert not torch.equal(*raw.encode(["إلى المَدرسة", "الى المدرسه"]))


def test_gradients_reach_only_the_ngrams_of_the_batch():
    encoder = _small()
    features = encoder.features(TEXTS[:2])
    encoder(features).square().sum().backward()
    seen = sorted(set(features.ngrams.tolist()))
    assert 0 < len(seen) < 512
    for gradient in (encoder.vectors.weight.grad.abs().sum(1), encoder.log_weight.grad.abs()):
        assert gradient.nonzero()[:, 0].tolist() == seen


def test_encoding_takes_the_features_to_where_the_weights_are():
    """`features` are made on the CPU. Weights on the meta device stand in for those on a GPU."""

    class Spy(NGramEncoder):
        def forward(self, features):
            seen.update((features.ngrams.device.type, features.offsets.device.type))
            return torch.zeros(len(features.offsets), 16)

    seen: set[str] = set()
    Spy(width=16, buckets=512).to("meta").encode(TEXTS)
    assert seen == {"meta"}


def test_encoding_keeps_no_gradient_and_gives_the_training_mode_back():
    encoder = _small()
    for training in (True, False):
        encoder.train(training)
        assert not encoder.encode(TEXTS).requires_grad
        assert encoder.training is training


@pytest.mark.parametrize("training", [True, False])
def test_similarity_is_the_cosine(training):
    encoder = _small()
    a, b = (encoder.encode(texts).double().numpy() for texts in (TEXTS[:3], TEXTS[3:]))
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(encoder.train(training).similarity(TEXTS[:3], TEXTS[3:]), expected, atol=1e-6)


def test_unit_rows_have_length_one_and_keep_their_direction():
    rows = torch.tensor([[3.0, 4.0], [0.0, -0.1]])
    torch.testing.assert_close(unit(rows), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


@pytest.mark.parametrize("text", ["؟!", "ـــ"])
def test_a_text_without_letters_is_the_zero_vector_similar_to_nothing(text):
    encoder = _small().fit_idf(TEXTS)
    assert torch.equal(encoder.encode([text]), torch.zeros(1, 16))
    embeddings = encoder.encode([text, TEXTS[0], text])
    assert torch.equal(embeddings[[0, 2]], torch.zeros(2, 16))
    assert torch.equal(embeddings[1:2], encoder.encode(TEXTS[:1]))
    assert encoder.similarity([text], TEXTS[:1]).tolist() == [0]


@pytest.mark.parametrize("empty", ["", " \n", None, float("nan")])
def test_an_empty_text_is_refused_by_number(empty):
    encoder = _small()
    for call in (encoder.encode, encoder.fit_idf, LexicalBaseline):
        with pytest.raises(ValueError, match="text 1 is empty"):
            call(["نص", empty, ""])


def test_no_texts_are_refused():
    for call in (_small().encode, _small().fit_idf, LexicalBaseline):
        with pytest.raises(ValueError, match="no texts"):
            call([])


# ---------------------------------------------------------------------------------------------- tables of texts


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8).flatmap(
        lambda lists: st.tuples(
            st.just(lists), st.lists(st.integers(0, len(lists) - 1), max_size=12) if lists else st.just([])
        )
    )
)
def test_ragged_lists_are_gathered_as_in_a_loop(case):
    lists, rows = case
    expected, begins = [], []
    for row in rows:
        begins.append(len(expected))
        expected += lists[row]
    found, found_begins = Ragged(lists).rows(np.array(rows, np.int64))
    assert (found.tolist(), found_begins.tolist()) == (expected, begins)
    assert found.dtype == np.int32


def test_ragged_lists_may_be_arrays_and_stay_as_they_were():
    lists = [np.array([4, 5]), np.array([], np.int64), np.array([6])]
    ragged = Ragged(lists)
    numbers, begins = ragged.rows(np.array([0, 1, 0]))
    numbers[:] = 9
    lists[0][:] = 8
    assert ragged.rows(np.array([2, 1, 0, 0]))[0].tolist() == [6, 4, 5, 4, 5]
    assert begins.tolist() == [0, 2, 2]


MIXED = [*TEXTS[:2], "؟!", *TEXTS[2:], "ـــ"]  # two of them have no letters, the last one being among them
ROWS = [[0, 1, 2], [2], [7, 2, 7], [3, 0, 3, 3, 2, 5, 2], [7, 6, 5, 4, 3, 2, 1, 0], [1, 4], []]


def _row_bags(features) -> list[list[int]]:
    """The numbers of each row of a bag, in order, whatever it is called."""
    numbers, offsets = features.values() if isinstance(features, dict) else features
    return [part.tolist() for part in np.split(numbers.numpy(), offsets.numpy()[1:])]


@pytest.mark.parametrize("rows", ROWS[:-1])
def test_rows_of_an_ngram_table_are_the_ngrams_of_those_texts(rows):
    encoder = _small()
    table, counts = encoder.table(MIXED), _hashed(MIXED, 512).toarray().astype(int)
    for _ in range(2):
        bags = _row_bags(table(torch.tensor(rows)))
        assert bags == _row_bags(_small().features([MIXED[row] for row in rows]))
        for row, bag in zip(rows, bags, strict=True):
            assert np.bincount(bag, minlength=512).tolist() == counts[row].tolist()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=20))
def test_any_rows_of_an_ngram_table_embed_as_their_texts_do(rows):
    encoder = _small()
    found = encoder(encoder.table(MIXED)(torch.tensor(rows))).detach()
    torch.testing.assert_close(found, encoder.encode(MIXED)[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [[0], [0, 1, 0]])
def test_a_table_without_any_ngrams_gives_zeros(rows):
    encoder = _small()
    features = encoder.table(["؟!", "ـــ"])(torch.tensor(rows))
    assert torch.equal(encoder(features), torch.zeros(len(rows), 16))


def test_a_table_is_not_disturbed_by_another_one():
    encoder = _small()
    table = encoder.table(TEXTS)
    before = _row_bags(table(torch.tensor([1, 3])))
    encoder.table(["أول كلمة", *reversed(TEXTS)])(torch.tensor([0, 2]))
    assert _row_bags(table(torch.tensor([1, 3]))) == before


def test_an_encoder_without_a_table_of_its_own_makes_features_of_the_rows():
    class Lengths(Encoder):
        def features(self, texts):
            return [len(text) for text in texts]

    table = Lengths().table(text for text in ("a", "bb", "cccc"))
    assert table(torch.tensor([2, 0, 2])) == [4, 1, 4]


THREADS = """
import torch
from gate_lessons.encoder import Bag, NGramEncoder

torch.set_num_threads(2)
draws = torch.Generator().manual_seed(0)
bag = Bag(torch.randint(256, (40_000,), generator=draws), torch.arange(0, 40_000, 200))
encoder, weight, found = NGramEncoder(width=8, buckets=256), torch.randn(200, 8, generator=draws), set()
for _ in range(10):
    encoder.zero_grad()
    (encoder(bag) * weight).sum().backward()
    found.add(b"".join(parameter.grad.numpy().tobytes() for parameter in encoder.parameters()))
print(torch.get_num_threads(), len(found))
"""


def test_two_threads_add_up_the_same_bits_of_gradient_each_time():
    """Many n-grams meet in few buckets: whoever adds to them in an order that depends on the threads is found out."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, env=os.environ, timeout=120, check=True
    )
    assert done.stdout.split() == ["2", "1"]


# ---------------------------------------------------------------------------------------------- saving


def _trained() -> NGramEncoder:
    encoder = _small(steps=("alef", "digits"), ngram_range=(3, 4), seed=5).fit_idf(TEXTS)
    with torch.no_grad():
        encoder.vectors.weight += torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
        encoder.log_weight += torch.randn(512, generator=torch.Generator().manual_seed(2))
    return encoder


def test_a_saved_encoder_gives_the_same_bits(tmp_path):
    encoder = _trained()
    encoder.save(tmp_path / "new" / "folder")
    loaded = NGramEncoder.load(tmp_path / "new" / "folder")
    assert loaded.config == encoder.config
    assert torch.equal(loaded.encode(TEXTS), encoder.encode(TEXTS))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_folder_holds_only_safetensors_and_json(tmp_path):
    from safetensors import safe_open

    _trained().save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "model.safetensors"]
    json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert sorted(weights.keys()) == ["log_weight", "vectors.weight"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_encoder_is_refused(tmp_path, missing):
    _trained().save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"is no saved encoder: it has no {missing}"):
        NGramEncoder.load(tmp_path)


# ---------------------------------------------------------------------------------------------- other encoders


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory) -> Path:
    """A random two-layer BERT with a vocabulary of Arabic letters, as a sentence-transformers folder."""
    pytest.importorskip("sentence_transformers", reason="the extra `hub` is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(c) for c in range(0x0621, 0x064B)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{letter}" for letter in letters]]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def test_a_sentence_transformer_encodes_as_its_own_model_does(tiny_bert):
    encoder = SentenceTransformerEncoder(tiny_bert)
    expected = encoder.model.encode(TEXTS, convert_to_tensor=True)
    found = encoder.encode(TEXTS, batch_size=4)
    assert found.shape == (6, 32)
    assert (found - found[0]).abs()[1:].max() > 0.01  # the model tells the texts apart
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_gradients_flow_into_a_sentence_transformer(tiny_bert):
    encoder = SentenceTransformerEncoder(tiny_bert)
    embeddings = encoder(encoder.features(TEXTS[:2]))
    assert embeddings.requires_grad
    embeddings[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert any("word_embeddings" in name and gradient.abs().sum() > 0 for name, gradient in gradients.items())


def test_features_of_a_sentence_transformer_survive_the_forward_pass(tiny_bert):
    """The model writes its outputs into the dictionary it is given: it must be given a copy."""
    encoder = SentenceTransformerEncoder(tiny_bert)
    features = encoder.features(TEXTS)
    names = set(features)
    encoder(features)
    assert set(features) == names


@pytest.mark.parametrize("rows", [[0], [3, 0, 3], [5, 4, 3, 2, 1, 0]])
def test_rows_of_a_transformers_table_are_the_features_of_those_texts(tiny_bert, rows):
    """Padded to the longest of those rows, not of the table."""
    encoder = SentenceTransformerEncoder(tiny_bert)
    found, expected = encoder.table(TEXTS)(torch.tensor(rows)), encoder.features([TEXTS[row] for row in rows])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value


@pytest.fixture(scope="module")
def static_model(tmp_path_factory) -> Path:
    """A table of random word vectors with a tokenizer that knows the words of `TEXTS`, as a folder."""
    pytest.importorskip("sentence_transformers", reason="the extra `hub` is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({word.strip("؟!.،") for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {word: i + 1 for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex("[؟!.،ـ]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("static")
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save_pretrained(
        str(folder)
    )
    return folder


@pytest.mark.parametrize("rows", ROWS)
def test_rows_of_a_static_table_are_the_tokens_of_those_texts(static_model, rows):
    encoder = SentenceTransformerEncoder(static_model)
    table = encoder.table(MIXED)
    expected = encoder.features([MIXED[row] for row in rows]) if rows else None
    for _ in range(2):
        found = table(torch.tensor(rows, dtype=torch.long))
        if rows:
            assert found.keys() == expected.keys()
            assert _row_bags(found) == _row_bags(expected)
            assert torch.equal(encoder(found), encoder(expected))
        else:
            assert [len(value) for value in found.values()] == [0, 0]


def test_a_static_model_splits_its_texts_once_and_encodes_as_its_own_model_does(static_model, monkeypatch):
    encoder = SentenceTransformerEncoder(static_model)
    expected = encoder.model.encode(MIXED, convert_to_tensor=True)
    assert (expected[2] == 0).all()
    assert len({tuple(row) for row in expected.tolist()}) == len(MIXED) - 1  # it tells the others apart
    asked = []
    features = encoder.features
    monkeypatch.setattr(encoder, "features", lambda texts: asked.append(len(texts)) or features(texts))
    torch.testing.assert_close(encoder.encode(MIXED, batch_size=3), expected, rtol=0, atol=1e-6)
    assert asked == [len(MIXED)]


def test_gradients_flow_into_a_static_model(static_model):
    encoder = SentenceTransformerEncoder(static_model)
    features = encoder.table(MIXED)(torch.tensor([1, 2, 1]))
    encoder(features).sum().backward()
    (weight,) = encoder.parameters()
    assert weight.grad.abs().sum(1).nonzero()[:, 0].tolist() == sorted(set(features["input_ids"].tolist()))


def test_a_saved_sentence_transformer_is_found_again(tiny_bert, tmp_path):
    encoder = SentenceTransformerEncoder(tiny_bert)
    with torch.no_grad():
        next(encoder.parameters()).mul_(0.5)
    encoder.save(tmp_path / "saved")
    again = make_encoder(str(tmp_path / "saved"))
    assert isinstance(again, SentenceTransformerEncoder)
    torch.testing.assert_close(again.encode(TEXTS), encoder.encode(TEXTS), rtol=0, atol=1e-6)
    assert not torch.allclose(again.encode(TEXTS), SentenceTransformerEncoder(tiny_bert).encode(TEXTS))
    assert not list((tmp_path / "saved").rglob("*.bin"))  # no pickled weights


def test_a_sentence_transformer_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # makes the import fail
    with pytest.raises(ValueError, match=r"encoder 'some/model' needs the extra `hub`: pip install"):
        SentenceTransformerEncoder("some/model")


def test_make_encoder_gives_each_of_the_three_kinds(tiny_bert, tmp_path):
    fresh = make_encoder("ngram", seed=3)
    assert torch.equal(fresh.encode(TEXTS), NGramEncoder(seed=3).encode(TEXTS))
    fitted = make_encoder("ngram", TEXTS, seed=3)
    assert torch.equal(fitted.log_weight, NGramEncoder().fit_idf(TEXTS).log_weight)
    trained = _trained()
    trained.save(tmp_path)
    loaded = make_encoder(str(tmp_path), TEXTS)  # a trained encoder is not fitted anew
    assert isinstance(loaded, NGramEncoder)
    assert torch.equal(loaded.encode(TEXTS), trained.encode(TEXTS))
    assert isinstance(make_encoder(str(tiny_bert)), SentenceTransformerEncoder)


def test_the_lexical_baseline_is_tfidf_within_words(groups):
    fit, texts1 = [g.anchor for g in groups[:50]], [g.anchor for g in groups[50:80]]
    texts2 = [g.sentences()["close"] for g in groups[50:80]]
    found = LexicalBaseline(fit).similarity(texts1, texts2)
    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, lowercase=False)
    tfidf.fit([normalize(text) for text in fit])
    x, y = (tfidf.transform([normalize(text) for text in texts]).toarray() for texts in (texts1, texts2))
    np.testing.assert_allclose(found, [a @ b for a, b in zip(x, y, strict=True)], atol=1e-12)
    np.testing.assert_allclose(LexicalBaseline(fit).similarity(texts1, texts1), 1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_encoder_on_cuda_encodes_as_on_the_cpu():
    encoder = NGramEncoder()
    expected = encoder.encode(TEXTS)
    found = encoder.to("cuda").encode(TEXTS)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_layer_can_be_trained_on_what_encode_gives():
    embeddings = NGramEncoder(width=8, buckets=2**8).encode(["جملة أولى", "جملة ثانية"])
    layer = torch.nn.Linear(8, 1)
    layer(embeddings).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
