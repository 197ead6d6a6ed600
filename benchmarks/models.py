"""Models and triplets that the measurements train: made here, without a download, the same for us and for a peer."""

from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils.logging import disable_progress_bar

from gate_lessons.data import load_corpus
from gate_lessons.evaluation import load_task

VOCABULARY = 16_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
disable_progress_bar()  # of reading and writing weights


def triplets(count: int | None = None) -> pd.DataFrame:
    """The corpus's training triplets, over and over until there are `count`, each row being a group of its own.

    sentence-transformers' trainer knows no groups: only so is nothing masked here that counts there.
    """
    table = load_task().train
    count = count or len(table)
    table = pd.concat([table] * -(-count // len(table)), ignore_index=True)[:count]
    return table.assign(group=[f"row {number}" for number in range(count)])


def static_model(folder: Path, width: int = 256) -> Path:
    """A random table of 16,000 word pieces, as a folder of sentence-transformers."""
    weights = torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(0))
    module = StaticEmbedding(_word_pieces(), embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(folder))
    return folder


def transformer(folder: Path, width: int = 128, layers: int = 4) -> Path:
    """A random small BERT over the same word pieces, as a folder of sentence-transformers."""
    BertTokenizerFast(vocab=_word_pieces().get_vocab()).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    config = BertConfig(vocab_size=VOCABULARY, num_attention_heads=width // 32, **sizes)
    BertModel(config).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(width)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def _word_pieces() -> Tokenizer:
    """A WordPiece tokenizer trained on every sentence of the corpus, which has enough of them for 16,000 pieces."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    texts = [text for group in load_corpus() for text in group.sentences().values()]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(
            f"the corpus gave {tokenizer.get_vocab_size()} word pieces, not {VOCABULARY}: it has become too small; "
            "lower VOCABULARY in benchmarks/models.py, and the issue's number with it"
        )
    return tokenizer
