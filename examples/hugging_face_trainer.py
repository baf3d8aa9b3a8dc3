"""Fine-tunes CMSBERT-CLR with Hugging Face's Trainer, then loads it again and scores an utterance.

    python examples/hugging_face_trainer.py

Runs offline on the embedded corpus, from a small model without pretraining. For real data and weights, change the two
marked places.
"""

import argparse

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from cmsbert_fast import (
    CMSBertCLRForSequenceClassification,
    CMSBertConfig,
    CMSBertProcessor,
    ContrastiveWeightCallback,
)
from cmsbert_fast.data import read_corpus
from cmsbert_fast.data.embedded import embedded_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="trained", help="folder for the model (default: trained)")
    parser.add_argument("--epochs", type=float, default=4, help="passes over the training set (default: 4)")
    parser.add_argument("--examples", type=int, help="train on so many examples only (default: all)")
    given = parser.parse_args()

    # 1. Data: read_corpus("path/to/your/data"). An example has words, frames of face and voice, and a label.
    corpus = read_corpus("embedded")
    train, valid, test = (list(corpus.splits[name]) for name in ("train", "valid", "test"))
    train = train[: given.examples]

    # 2. Model: CMSBertCLRForSequenceClassification.from_pretrained("bert-base-uncased", visual_size=47,
    #    acoustic_size=74, num_labels=1), and AutoTokenizer.from_pretrained("bert-base-uncased").
    tokenizer = embedded_tokenizer()
    config = CMSBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        visual_size=corpus.visual_size,
        acoustic_size=corpus.acoustic_size,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config)

    # The processor turns words and frames into a batch; it standardises frames with statistics of the training set.
    processor = CMSBertProcessor(tokenizer).fit(train)

    def collate(examples: list) -> dict:
        return processor.collate([processor.encode(example) for example in examples])

    def error(prediction) -> dict[str, float]:
        scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return {"mae": float(np.abs(scores[:, 0] - prediction.label_ids).mean())}

    trainer = Trainer(
        model,
        TrainingArguments(
            given.output,
            num_train_epochs=given.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=100,
            learning_rate=2e-3,
            warmup_steps=20,
            max_grad_norm=1.0,
            eval_strategy="epoch",
            save_strategy="no",
            remove_unused_columns=False,  # the collator takes whole examples
            report_to=[],
        ),
        train_dataset=train,
        eval_dataset=valid,
        data_collator=collate,
        compute_metrics=error,
    )
    trainer.add_callback(ContrastiveWeightCallback(trainer))  # the weight of the contrastive loss, Eq. 21-22
    trainer.train()

    always_mean = np.mean([abs(example.label - np.mean([e.label for e in train])) for example in test])
    found = trainer.evaluate(test, metric_key_prefix="test")["test_mae"]
    print(f"test MAE {found:.3f}; of the training mean as constant answer {always_mean:.3f}")

    trainer.save_model(given.output)
    processor.save_pretrained(given.output)
    again = CMSBertCLRForSequenceClassification.from_pretrained(given.output).eval()
    processor = CMSBertProcessor.from_pretrained(given.output)
    one = test[0]
    with torch.no_grad():
        score = again(**processor(one.words, visual=one.visual, acoustic=one.acoustic)).logits.item()
    print(f"{' '.join(one.words)!r}: {score:.2f} (label {one.label:.1f})")


if __name__ == "__main__":
    main()
