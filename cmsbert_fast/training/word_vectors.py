"""The frozen word vectors of a run, from a file or from the checkpoint's own embeddings."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.data.example import SPLITS, Corpus, outlines
from cmsbert_fast.data.word_vectors import WordVectors, read_vectors, select
from cmsbert_fast.training.build import load_tokenizer
from cmsbert_fast.training.config import build_config, check_architecture
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.pretrained import check_weights, reason, saved_config
from cmsbert_fast.training.settings import TrainingSettings

OF_BERT = "bert"  # instead of a file


def word_vectors(settings: TrainingSettings, corpus: Corpus) -> WordVectors | None:
    """The vectors of all words of a corpus; None where none are asked for.

    Their coverage becomes a note of the corpus's report.

    Raises:
        UsageError, DataError: The file or the checkpoint cannot be read.
    """
    if settings.word_vectors is None:
        return None
    text = [word for split in SPLITS for outline in outlines(corpus.splits.get(split, ())) for word in outline.words]
    if settings.word_vectors == OF_BERT:
        found = _of_bert(settings, corpus, dict.fromkeys(text))
    else:
        found = read_vectors(Path(settings.word_vectors), text)
    corpus.report.note(found.coverage(text))
    return found


def _of_bert(settings: TrainingSettings, corpus: Corpus, words: Collection[str]) -> WordVectors:
    """The mean, over the pieces of each word, of BERT's input embeddings; without a checkpoint, of new ones."""
    tokenizer: Any
    if settings.model is None:
        tokenizer, config = embedded_tokenizer(), build_config(settings, corpus)
        random = torch.Generator().manual_seed(settings.seed)
        table = config.initializer_range * torch.randn(len(tokenizer), config.hidden_size, generator=random)
        source = "new embeddings of word pieces, which are random"
    else:
        tokenizer, table = load_tokenizer(settings.model), _input_embeddings(settings.model)
        source = f"the input embeddings of {settings.model}"
    encoding = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
    pieces: dict[int, list[int]] = {}
    for piece, word in zip(encoding["input_ids"], encoding.word_ids(), strict=True):
        pieces.setdefault(word, []).append(piece)
    rows = table.numpy()
    found = {word: rows[pieces[k]].mean(axis=0, dtype=np.float64) for k, word in enumerate(words) if k in pieces}
    return select(found, words, source)


def _input_embeddings(name: str) -> torch.Tensor:
    """The embeddings of word pieces of a checkpoint, (pieces, D) float32."""
    fields = saved_config(name, BertConfig)
    check_architecture(fields, BertConfig)
    try:
        config = BertConfig.from_dict(fields)
        check_weights(name, BertModel, config)
        model = BertModel.from_pretrained(
            name, config=config, add_pooling_layer=False, dtype=torch.float32, trust_remote_code=False
        )
    except UsageError:
        raise
    except Exception as error:  # what a stranger's files make fail has no common class
        raise UsageError(
            f"The weights of {name} cannot be loaded; give an undamaged checkpoint: {reason(error)}"
        ) from None
    return model.get_input_embeddings().weight.detach()
