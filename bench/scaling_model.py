"""The page on many devices: what was measured on one machine, and what a model makes of it for 8 to 1,024.

The model, for K devices with n utterances each::

    step(K) = compute * imbalance(K) + loss(K) + exposed(K) + gather(K)

    imbalance(K)  expected most tokens of a device over the mean, from MOSI's lengths by simulation
    loss(K)       30 n (nK) d operations (each device its rows against all columns, six directions forward, backward in
                  both roles) over the measured matrix rate; that of one device is part of compute
    exposed(K)    what of the ring all-reduce, 2 (K-1)/K gradient bytes / bandwidth, exceeds the backward pass (2/3 of
                  compute) that it overlaps
    gather(K)     embeddings of all others, 3 n d (K-1) float32 / bandwidth; gradients stay where they are made
"""

import functools
from typing import Any

import numpy as np
import torch

from bench import names
from bench.workload import MOSI_LENGTHS, make_config
from cmsbert_fast import CMSBertCLRForSequenceClassification

PER_DEVICE, HIDDEN = 32, 768
BANDWIDTH = {"cpu": 3.1e9, "cuda": 50e9}  # bytes/s a device sends: 25 Gb/s Ethernet; 400 Gb/s a GPU
DEVICES = [1, 8, 64, 256, 1024]


def is_gpu(device: str) -> bool:
    """Whether a device's name is that of a GPU."""
    return "NVIDIA" in device or "AMD Instinct" in device


def imbalance(devices: int, per_device: int = PER_DEVICE, draws: int = 200) -> float:
    """Mean over batches of the fullest device's tokens over the average device's."""
    tokens = np.random.default_rng(0).choice(MOSI_LENGTHS, (draws, devices, per_device)).sum(axis=2)
    return float((tokens.max(axis=1) / tokens.mean(axis=1)).mean())


@functools.cache
def parameters() -> int:
    """Of CMSBERT-CLR in BERT-base shape."""
    with torch.device("meta"):
        return CMSBertCLRForSequenceClassification(make_config()).num_parameters()


def predict(devices: int, compute: float, matrix_rate: float, bandwidth: float) -> dict[str, float]:
    """Seconds of a step by part."""
    n = PER_DEVICE
    reduce = 2 * (devices - 1) / devices * 4 * parameters() / bandwidth
    parts = {
        "compute": compute,
        "imbalance": compute * (imbalance(devices) - 1),
        "loss": 30 * n * n * (devices - 1) * HIDDEN / matrix_rate,
        "exposed": max(0.0, reduce - 2 / 3 * compute),
        "gather": 3 * n * HIDDEN * 4 * (devices - 1) / bandwidth,
    }
    return parts | {"total": sum(parts.values())}


def measured_lines(results: list[dict[str, Any]]) -> list[str]:
    """The table of what ran here."""
    lines = []
    for result in results:
        lines += [f"**Measured: {result['case']}, {result['cpus']} CPUs**", ""]
        lines += ["| processes | step, slowest rank | over 1 process | waiting for the rest of the all-reduce | "
                  "work, fullest / mean rank | tokens, fullest / mean rank |", "|" + " --- |" * 6]  # fmt: skip
        one = np.median(result["processes"]["1"]["seconds"])
        for processes, row in result["processes"].items():
            seconds = np.median(row["seconds"])
            shared = " (more processes than CPUs)" if int(processes) > result["cpus"] else ""
            lines.append(
                f"| {processes}{shared} | {seconds * 1e3:.0f} ms | {seconds / one:.2f} | {row['waiting']:.1%} | "
                f"{row['work_imbalance']:.2f} | {row['token_imbalance']:.2f} |"
            )
        lines += [""]
    return lines


def lines(scaling: list[dict[str, Any]], everything: list[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    """Measurement, then model; the model needs a measured step."""
    page = measured_lines(scaling)
    step = next((r for r in everything if r["kind"] == "race" and names.CLR in r["seconds"]), None)
    if step is None:
        return page
    compute = float(np.median(step["seconds"][names.CLR]))
    kind = "cuda" if is_gpu(facts["device"]) else "cpu"
    rate, bandwidth = facts["matrix_flops_per_second"][step["dtype"]], BANDWIDTH[kind]
    page += [
        "**Modelled, not measured: 1 to 1,024 such machines**",
        "",
        f"From the measured step of {compute:.3g} s (BERT-base shape, {PER_DEVICE} utterances) and the measured matrix "
        f"rate, with a stated bandwidth of {bandwidth / 1e9:.3g} GB/s a device and no latency. The formulas stand in "
        "`bench/scaling_model.py`.",
        "",
        "| devices | global batch | compute | imbalance | contrastive loss | all-reduce not hidden | gather | step | "
        "efficiency |",
        "|" + " --- |" * 9,
    ]
    for devices in DEVICES:
        parts = predict(devices, compute, rate, bandwidth)
        columns = [f"{parts[name]:.3g} s" for name in ("compute", "imbalance", "loss", "exposed", "gather", "total")]
        page.append(
            f"| {devices} | {devices * PER_DEVICE} | " + " | ".join(columns) + f" | {compute / parts['total']:.0%} |"
        )
    return [*page, ""]
