"""Puts ``cms_attention`` inside somebody else's encoder: Hugging Face's DistilBERT learns to see a face.

    python examples/attention_in_another_encoder.py

Every self-attention of DistilBERT keeps its weights. It gets two new parts: a gate, which decides how much each frame
of the face matters to each word, and a projection of what passes. Both start at zero, so a pretrained DistilBERT
starts as it is. The script trains the model twice on the embedded corpus, without and with the face.
"""

import argparse

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from cmsbert_fast import ModalityShift, cms_attention
from cmsbert_fast.data import Example, read_corpus
from cmsbert_fast.data.embedded import embedded_tokenizer


class AttentionWithFace(nn.Module):
    """DistilBERT's self-attention, its queries, keys and values shifted by the face (Eq. 1-7).

    ``frames`` (B, F, d) and ``frame_mask`` (B, F) are set before each forward pass, as is ``token_mask`` (B, N).
    """

    def __init__(self, theirs: nn.Module, frame_size: int):
        super().__init__()
        self.theirs = theirs
        self.gate_token = nn.Linear(theirs.dim, 1, bias=False)
        self.gate_frame = nn.Linear(frame_size, 1)
        self.shift = nn.Linear(frame_size, theirs.dim, bias=False)
        nn.init.zeros_(self.shift.weight)
        self.frames: Tensor | None = None
        self.frame_mask: Tensor | None = None
        self.token_mask: Tensor | None = None

    def forward(self, hidden_states: Tensor, **ignored) -> tuple[Tensor, None]:
        face = None
        if self.frames is not None:
            face = ModalityShift(
                token_gate=self.gate_token(hidden_states).squeeze(-1),
                frame_gate=self.gate_frame(self.frames).squeeze(-1),
                frames=self.frames,
                weight=self.shift.weight,
                mask=self.frame_mask,
            )
        heads = (self.theirs.n_heads, -1)
        query, key, value = (
            linear(hidden_states).unflatten(-1, heads)  # (B, N, H, d_h)
            for linear in (self.theirs.q_lin, self.theirs.k_lin, self.theirs.v_lin)
        )
        dropout = self.theirs.dropout.p if self.training else 0.0
        z = cms_attention(query, key, value, face, attention_mask=self.token_mask, dropout_p=dropout)
        return self.theirs.out_lin(z.flatten(-2)), None


class DistilBertWithFace(nn.Module):
    """A score for words and a face."""

    def __init__(self, encoder: DistilBertModel, frame_size: int):
        super().__init__()
        self.encoder = encoder
        for layer in encoder.transformer.layer:
            layer.attention = AttentionWithFace(layer.attention, frame_size)
        self.head = nn.Linear(encoder.config.dim, 1)

    def forward(self, words: Tensor, token_mask: Tensor, frames: Tensor | None, frame_mask: Tensor | None) -> Tensor:
        for layer in self.encoder.transformer.layer:
            attention = layer.attention
            attention.frames, attention.frame_mask, attention.token_mask = frames, frame_mask, token_mask
        states = self.encoder(words, token_mask).last_hidden_state
        pooled = (states * token_mask[..., None]).sum(1) / token_mask.sum(1, keepdim=True)
        return self.head(pooled).squeeze(-1)


def batch_of(examples: list[Example], tokenizer, see: bool) -> tuple[tuple, Tensor]:
    """Padded inputs of the model, and the labels."""
    text = tokenizer([" ".join(example.words) for example in examples], padding=True, return_tensors="pt")
    frames = frame_mask = None
    if see:
        frames = nn.utils.rnn.pad_sequence([torch.from_numpy(example.visual) for example in examples], batch_first=True)
        lengths = torch.tensor([len(example.visual) for example in examples])
        frame_mask = torch.arange(frames.shape[1]) < lengths[:, None]
    labels = torch.tensor([example.label for example in examples])
    return (text["input_ids"], text["attention_mask"].bool(), frames, frame_mask), labels


def train(see: bool, given: argparse.Namespace) -> float:
    """Trains a small DistilBERT; the mean absolute error on the test set."""
    corpus, tokenizer = read_corpus("embedded"), embedded_tokenizer()
    torch.manual_seed(0)
    # For real: DistilBertModel.from_pretrained("distilbert-base-uncased") and its tokenizer.
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    model = DistilBertWithFace(DistilBertModel(config), corpus.visual_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    examples = list(corpus.splits["train"])[: given.examples]
    for _ in range(given.epochs):
        for indices in torch.randperm(len(examples)).split(32):
            inputs, labels = batch_of([examples[k] for k in indices], tokenizer, see)
            loss = nn.functional.mse_loss(model(*inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        inputs, labels = batch_of(list(corpus.splits["test"]), tokenizer, see)
        return (model(*inputs) - labels).abs().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training set (default: 6)")
    parser.add_argument("--examples", type=int, help="train on so many examples only (default: all)")
    given = parser.parse_args()
    print(f"test MAE of DistilBERT: {train(False, given):.3f}")
    print(f"test MAE of DistilBERT that sees the face: {train(True, given):.3f}")


if __name__ == "__main__":
    main()
