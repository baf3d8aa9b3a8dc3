"""From examples to a batch on the device: tokenising, standardising, collating."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset, default_collate
from transformers import PreTrainedTokenizerFast

from bench import names
from bench.workload import ACOUSTIC_SIZE, PADDED_LENGTH, VISUAL_SIZE, draw_lengths, make_config
from cmsbert_fast import CMSBertForSequenceClassification, CMSBertProcessor
from cmsbert_fast.data.example import Alignment, Example
from cmsbert_fast.training.batches import Batches

EXAMPLES, BATCH = 512, 32


def make_examples(lengths: Sequence[int]) -> list[Example]:
    """Random utterances of ``lengths`` pieces, [CLS] and [SEP] included: one word a piece, one frame a word."""
    random = np.random.default_rng(0)
    return [
        Example(
            str(k),
            tuple(f"w{i}" for i in random.integers(0, 5000, length)),
            float(random.uniform(-3, 3)),
            random.normal(size=(length, VISUAL_SIZE)).astype(np.float32),
            random.normal(size=(length, ACOUSTIC_SIZE)).astype(np.float32),
            Alignment.WORDS,
        )
        for k, length in enumerate(np.array(lengths) - 2)
    ]


def make_processor(examples: list[Example]) -> CMSBertProcessor:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(5000))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return CMSBertProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)).fit(examples)


def padded_by_hand(examples: list[Example], processor: CMSBertProcessor):
    """What MAG-BERT's script does with an example: pad ids, mask and both modalities to 50, in Python."""
    rows = []
    for example in examples:
        encoded = processor.encode(example)
        missing = PADDED_LENGTH - len(encoded.input_ids)
        frames = []
        for name in ("visual", "acoustic"):
            values = getattr(encoded, name)
            aligned = np.concatenate([np.zeros((1, values.shape[1])), values, np.zeros((1, values.shape[1]))])
            aligned = np.concatenate([aligned, np.zeros((PADDED_LENGTH - len(aligned), values.shape[1]))])
            frames.append(torch.tensor(aligned, dtype=torch.float32))
        mask = [1] * len(encoded.input_ids) + [0] * missing
        rows.append((torch.tensor(encoded.input_ids + [0] * missing), torch.tensor(mask), *frames))
    return [pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True)]


def prepared():
    examples = make_examples(draw_lengths("mosi", EXAMPLES))
    processor = make_processor(examples)
    with torch.device("meta"):  # batches only ask what it reads
        model = CMSBertForSequenceClassification(make_config())
    return examples, processor, model, list(range(BATCH))


def check(packed, padded):
    """The same pieces and frames, but for the zero frames that padding by hand gives [CLS] and [SEP]."""
    mask = padded[1].bool()
    assert torch.equal(packed["input_ids"][0], padded[0][mask])
    pieces = mask.clone()
    pieces[:, 0] = False
    pieces[torch.arange(len(mask)), mask.sum(dim=1) - 1] = False
    assert torch.equal(packed["visual"], padded[2][pieces])
    assert torch.equal(packed["acoustic"], padded[3][pieces])


def test_from_words(race, device):
    """What the first epoch costs: tokenising, standardising and collating."""
    examples, processor, model, indices = prepared()

    def ours():
        return Batches(examples, processor, model, device).load(indices)

    def by_hand():
        return [x.to(device) for x in padded_by_hand(examples[:BATCH], processor)]

    check({name: x.cpu() for name, x in ours().items() if torch.is_tensor(x)}, [x.cpu() for x in by_hand()])
    race(
        names.DATA,
        f"{BATCH} word-aligned examples of MOSI's lengths, from words",
        {names.OURS: ours, "padded to 50 by hand": by_hand},
        seconds=5,
        facts={"utterances": BATCH},
    )


def test_prepared(race, device):
    """What later epochs cost: everything tokenised and standardised before."""
    examples, processor, model, indices = prepared()
    kept = Batches(examples, processor, model, device)
    kept.load(range(EXAMPLES))
    dataset = TensorDataset(*padded_by_hand(examples, processor))
    race(
        names.DATA,
        f"{BATCH} word-aligned examples of MOSI's lengths, prepared before",
        {
            names.OURS: lambda: kept.load(indices),
            "TensorDataset padded to 50, indexed": lambda: [x.to(device) for x in dataset[indices]],
            "TensorDataset padded to 50, default_collate": lambda: [
                x.to(device) for x in default_collate([dataset[i] for i in indices])
            ],
        },
        seconds=5,
        facts={"utterances": BATCH},
    )
