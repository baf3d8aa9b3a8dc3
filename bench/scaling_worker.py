"""One rank of the scaling benchmark, which ``bench/test_scaling.py`` starts: real steps, timed in parts."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.workload import MOSI_LENGTHS, ModelBatch, make_config
from cmsbert_fast import CMSBertCLRForSequenceClassification
from cmsbert_fast.training import distributed
from cmsbert_fast.training.distributed import Gradients


def main(shape: str, per_rank: int, steps: int, output: Path) -> None:
    """Trains ``steps`` steps of ``per_rank`` utterances a rank; rank 0 writes every rank's seconds and tokens."""
    ranks = distributed.start("cpu")
    torch.set_num_threads(1)
    config = make_config(shape)
    torch.manual_seed(0)
    model = CMSBertCLRForSequenceClassification(config).train()
    gradients = Gradients(model, ranks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    records = []
    for step in range(steps + 1):
        count = per_rank * ranks.world_size
        drawn = np.random.default_rng(step).choice(MOSI_LENGTHS, count)  # the same on every rank
        lengths = drawn[distributed.share(count, ranks)].tolist()
        batch = ModelBatch.draw(config, lengths, ranks.device)
        distributed.wait_for_all(ranks)
        begin, worked = time.perf_counter(), time.process_time()
        gradients.zero()
        model(**batch.packed).loss.backward()
        computed, worked = time.perf_counter(), time.process_time() - worked
        gradients.finish()
        reduced = time.perf_counter()
        gradients.norm()
        optimizer.step()
        end = time.perf_counter()
        if step:  # the first one warms up
            # Work is the processor's own time: waiting for others' embeddings is none.
            records.append(dict(tokens=sum(lengths), total=end - begin, work=worked, waiting=reduced - computed))
    everything = distributed.gather_objects(records, ranks)
    if ranks.is_main:
        output.write_text(json.dumps(everything), encoding="utf-8")
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
