"""Three encoders learn one space: the contrastive loss of text, face and voice under DDP, with GradCache.

    torchrun --nproc-per-node 2 examples/contrastive_loss_on_many_processes.py
    python examples/contrastive_loss_on_many_processes.py

Both print the same losses, up to rounding: each utterance is compared with those of the whole global batch, on
whichever process they are. GradCache takes the batch of a process in micro-batches, so that the activations of one
micro-batch are held at a time; the negatives are still those of the global batch.

What is said, seen and heard in the embedded corpus has little in common but the sentiment, so the loss ends only a
little below that of guessing, six times the logarithm of the batch. With your data it falls further.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from cmsbert_fast import pairwise_contrastive_loss
from cmsbert_fast.data import Example, read_corpus
from cmsbert_fast.data.embedded import embedded_tokenizer
from cmsbert_fast.training.gradcache import gradcache_backward

Batch = tuple[Tensor, PackedSequence, PackedSequence, Tensor]


class Encoders(nn.Module):
    """One vector of an utterance's words, one of its face, one of its voice. Put your encoders here."""

    def __init__(self, vocabulary: int, visual: int, acoustic: int, size: int = 64):
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, size, padding_idx=0)
        self.face, self.voice = (nn.GRU(features, size) for features in (visual, acoustic))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        words, face, voice, labels = batch
        # Labels go through: the loss below gets them in the order of the embeddings.
        return self.words(words), self.face(face)[1][0], self.voice(voice)[1][0], labels


def batch_of(examples: list[Example], tokenizer) -> Batch:
    """Padded word pieces, frames of face and voice, and the labels."""
    words = tokenizer([" ".join(example.words) for example in examples], padding="max_length", max_length=40)
    face, voice = (
        pack_sequence([torch.from_numpy(getattr(example, name)) for example in examples], enforce_sorted=False)
        for name in ("visual", "acoustic")
    )
    labels = torch.tensor([example.label for example in examples])
    return torch.tensor(words["input_ids"]), face, voice, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps (default: 60)")
    parser.add_argument("--batch", type=int, default=256, help="utterances of a global batch (default: 256)")
    parser.add_argument("--micro-batches", type=int, default=4, help="per process (default: 4)")
    given = parser.parse_args()

    if "RANK" in os.environ:  # under torchrun; on GPUs "nccl", and .cuda() where tensors are made
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    group = dist.group.WORLD if world > 1 else None

    corpus, tokenizer = read_corpus("embedded"), embedded_tokenizer()
    examples = corpus.splits["train"]
    torch.manual_seed(0)
    encoders = Encoders(len(tokenizer), corpus.visual_size, corpus.acoustic_size)
    model = DistributedDataParallel(encoders) if world > 1 else encoders
    no_sync = {"no_sync": model.no_sync} if isinstance(model, DistributedDataParallel) else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)  # the same on every process

    def loss(words: Tensor, face: Tensor, voice: Tensor, labels: Tensor) -> Tensor:
        """Six directions. With labels, utterances of the same sentiment count as partly right (Eq. 23)."""
        return pairwise_contrastive_loss(words, face, voice, labels, temperature=0.1, group=group)

    for step in range(given.steps):
        chosen = torch.randperm(len(examples), generator=order)[: given.batch]
        mine = chosen[rank::world].tensor_split(given.micro_batches)
        micro_batches = [batch_of([examples[k] for k in some], tokenizer) for some in mine]
        optimizer.zero_grad()
        # DDP averages the gradients; the loss is made for that, nothing is to be rescaled.
        result = gradcache_backward(model, micro_batches, loss, **no_sync)
        optimizer.step()
        if rank == 0 and (step % 10 == 0 or step + 1 == given.steps):
            print(f"step {step + 1}: loss {result.loss.item():.4f} of {given.batch} utterances", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
