"""From examples to a batch on the device: tokenising, standardising, collating."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from bench.workload import ACOUSTIC_SIZE, PADDED_LENGTH, VISUAL_SIZE, draw_lengths, make_config
from cmsbert_fast import CMSBertProcessor
from cmsbert_fast.data.example import Example
from cmsbert_fast.training.evaluation import Batches

SUITE = "Data to batch"
EXAMPLES, BATCH = 512, 32


def make_examples() -> list[Example]:
    random = np.random.default_rng(0)
    return [
        Example(
            str(k),
            tuple(f"w{i}" for i in random.integers(0, 5000, length)),
            float(random.uniform(-3, 3)),
            random.normal(size=(length, VISUAL_SIZE)).astype(np.float32),
            random.normal(size=(length, ACOUSTIC_SIZE)).astype(np.float32),
            True,
        )
        for k, length in enumerate(draw_lengths("mosi", EXAMPLES))
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


def test_batches(race, device):
    examples = make_examples()
    processor = make_processor(examples)
    config = make_config()
    indices = list(range(BATCH))
    kept = Batches(examples, processor, config, device)

    def first_time():
        return Batches(examples, processor, config, device).load(indices)

    by_hand = padded_by_hand(examples[:BATCH], processor)
    packed = kept.load(indices)
    assert torch.equal(packed["input_ids"][0].cpu(), by_hand[0][by_hand[1].bool()])
    race(
        SUITE,
        f"{BATCH} word-aligned examples of MOSI's lengths",
        {
            "ours, from the second epoch on": lambda: kept.load(indices),
            "ours, first epoch": first_time,
            "padded to 50 by hand": lambda: [x.to(device) for x in padded_by_hand(examples[:BATCH], processor)],
        },
        seconds=10,
        facts={"utterances": BATCH},
    )
