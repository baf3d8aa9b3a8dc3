"""The share of a training step that the contrastive loss takes: ``python bench/loss_share.py --help``.

Times, interleaved in random order, whole steps of CMSBERT-CLR (forward, backward, AdamW) and the contrastive loss alone
(forward and backward, on embeddings of the same shape), and prints the median share with a bootstrap interval.
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import torch

from cmsbert_fast import CMSBertCLRForSequenceClassification, CMSBertConfig, pairwise_contrastive_loss
from cmsbert_fast.packing import cumulative

SIZES = {"base": (768, 12, 12), "minilm": (384, 6, 12), "tiny": (64, 2, 4)}  # hidden size, layers, heads


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    torch.manual_seed(0)
    hidden, layers, heads = SIZES[given.size]
    config = CMSBertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        visual_size=47,
        acoustic_size=74,
    )
    model = CMSBertCLRForSequenceClassification(config).to(given.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    lengths = np.random.default_rng(0).gamma(2.5, 5.2, given.batch).clip(3, 50).astype(int)  # mean about 13 pieces
    inputs = batch(torch.from_numpy(lengths), config, given.device)
    labels = torch.empty(given.batch, device=given.device).uniform_(-3, 3)
    embeddings = [torch.randn(given.batch, hidden, device=given.device, requires_grad=True) for _ in range(3)]

    def step() -> None:
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()

    def loss() -> None:
        pairwise_contrastive_loss(*embeddings, labels).backward()

    seconds: dict[Callable[[], None], list[float]] = {step: [], loss: []}
    for run in (step, loss, step, loss):  # warm-up
        run()
    for _ in range(given.rounds):
        for run in random.sample([step, loss], 2):
            seconds[run].append(timed(run, given.device))
    shares = np.array(seconds[loss]) / np.array(seconds[step])
    resampled = np.median(np.random.default_rng(0).choice(shares, (2000, len(shares))), axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    print(
        f"{given.size}, batch {given.batch}, {lengths.sum()} word pieces, {given.device}, {torch.get_num_threads()} "
        f"threads: step {np.median(seconds[step]) * 1e3:.1f} ms, contrastive loss {np.median(seconds[loss]) * 1e3:.2f} "
        f"ms, share {100 * np.median(shares):.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
    )


def batch(lengths: torch.Tensor, config: CMSBertConfig, device: str) -> dict[str, torch.Tensor | int]:
    """A packed batch of random words, with one frame of each modality a word piece."""
    total, longest = int(lengths.sum()), int(lengths.max())
    cu_seqlens = cumulative(lengths).to(device)
    inputs: dict[str, torch.Tensor | int] = {
        "input_ids": torch.randint(config.vocab_size, (1, total), device=device),
        "cu_seq_lens_q": cu_seqlens,
        "max_length_q": longest,
    }
    for name, size in (("visual", config.visual_size), ("acoustic", config.acoustic_size)):
        inputs[name] = torch.randn(total, size, device=device)
        inputs |= {f"cu_seq_lens_{name}": cu_seqlens, f"max_length_{name}": longest}
    return inputs


def timed(run: Callable[[], None], device: str) -> float:
    """Seconds of one call, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
