"""The table of tiles, warps and stages of all Triton kernels, and its one look-up.

``tiles.json`` has one list of rows for each family of kernels ("cms_attention", "contrastive", "layer"). A row::

    {"kernel": "attention_forward", "device": "sm_80", "item_size": 2, "at_most": {"tokens": 1073741824,
     "head_size": 64}, "config": {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2}}

* ``device`` is a pattern: "sm_80" (see :func:`cmsbert_fast.kernels.common.device_class`), "gfx*" (all of AMD's), "*".
* ``at_most`` names sizes of the call that the row serves, with their upper bounds; any size of those not named.
* ``divides`` (optional) names sizes that must be multiples of what is given.
* ``config`` is handed to the kernel as it is.

Rows were chosen by registers and spills of ahead-of-time compiles (``tests/kernels/aot.py``);
:mod:`cmsbert_fast.kernels.tune` chooses by time on a device.
"""

import functools
import json
import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("tiles.json")


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    """The rows of every family."""
    return json.loads(PATH.read_text())


def write(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Replaces the table's file: one row a line, sorted."""

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        bounds, factors = tuple(row["at_most"].values()), tuple(row.get("divides", {}).values())
        return row["kernel"], row["item_size"], bounds, factors, row["device"]

    families = []
    for family, unsorted in rows.items():
        lines = ",\n".join(json.dumps(row) for row in sorted(unsorted, key=order))
        families.append(f'"{family}": [\n{lines}\n]')
    PATH.write_text("{\n" + ",\n".join(families) + "\n}\n")


@functools.lru_cache(1024)
def configuration(family: str, kernel: str, device: str, item_size: int, **sizes: int) -> dict[str, int]:
    """Tiles, warps and stages of a kernel: the table's tightest row that fits, of equal ones the very device's.

    Args:
        family: "cms_attention", "contrastive" or "layer".
        kernel: The kernel's name without ``_kernel``.
        device: See :func:`cmsbert_fast.kernels.common.device_class`.
        item_size: Bytes of an element.
        sizes: Those of this call that the family's rows may name, the more important first: "tokens", "head_size",
            "batch", "width" (of frames, in tiles), "padded" (1: one tile for all short sequences); "rows", "width".

    Raises:
        LookupError: no row fits.
    """

    def fits(row: dict[str, Any]) -> bool:
        return (
            row["kernel"] == kernel
            and row["item_size"] == item_size
            and fnmatchcase(device, row["device"])
            and all(sizes[name] <= bound for name, bound in row["at_most"].items())
            and all(sizes[name] % factor == 0 for name, factor in row.get("divides", {}).items())
        )

    def looseness(row: dict[str, Any]) -> tuple[float, ...]:
        # Sizes come before the device: what was tuned on it for wide heads would take narrow ones' tiles over.
        bounds = (row["at_most"].get(name, math.inf) for name in sizes)
        return (*bounds, -max(row.get("divides", {}).values(), default=1), -len(row["device"]))

    fitting = [row for row in table()[family] if fits(row)]
    if not fitting:
        given = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise LookupError(f"{PATH.name} has no row for {family}'s {kernel}: {device}, {item_size} bytes, {given}.")
    return min(fitting, key=looseness)["config"]
