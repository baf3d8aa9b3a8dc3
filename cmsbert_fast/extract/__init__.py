"""From videos to words, face and voice: a folder that ``--data`` reads (see ``docs/video.md``).

`extract` is the whole of it. The rooms: ``media`` decodes in a process of its own, ``words`` finds text and times,
``voice`` and ``face`` measure. Names are loaded on first use: the decoding process needs none of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmsbert_fast.extract.options import ExtractOptions
    from cmsbert_fast.extract.outcomes import Summary
    from cmsbert_fast.extract.run import CAVEAT, extract, others_in

__all__ = ["CAVEAT", "ExtractOptions", "Summary", "extract", "others_in"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmsbert_fast.extract import options, outcomes, run

    return getattr(next(module for module in (run, options, outcomes) if hasattr(module, name)), name)
