"""Fonts for the scripts of a figure's texts: installed ones that have the characters, else a sentence."""

import functools
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

DEFAULT = "DejaVu Sans"
# Looked at first, for their looks; then all others by name.
_PREFERRED = (
    "Noto Sans",
    "Noto Sans CJK",
    "Source Han Sans",
    "PingFang",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi",
    "Noto Emoji",
    "Symbola",
    "Segoe UI Emoji",
)
# What to install.
_CJK = "Noto Sans CJK (Debian and Ubuntu: apt install fonts-noto-cjk)"
_EMOJI = "Symbola (Debian and Ubuntu: apt install fonts-symbola); fonts of coloured emoji cannot be drawn"
_OTHERS = "a Noto Sans font of that script (Debian and Ubuntu: apt install fonts-noto-core)"
# What the font for Chinese, Japanese and Korean has, by the first word of a character's Unicode name.
_CJK_SCRIPTS = {
    "CJK": "Chinese characters",
    "HIRAGANA": "Japanese kana",
    "KATAKANA": "Japanese kana",
    "HANGUL": "Korean letters",
    "BOPOMOFO": "Chinese phonetic letters",
    "FULLWIDTH": "wide CJK characters",
}
_SHOWN = 6  # characters in the sentence

_told: set[str] = set()


def cover(figure: Figure) -> None:
    """Gives every text of a figure the fonts that its characters need.

    Where no installed font has them, a sentence on stderr, once a process and script, says what to install.
    """
    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    known = _characters(font_manager.findfont(DEFAULT))
    needed = sorted({c for text in texts for c in text.get_text() if not c.isspace() and ord(c) not in known})
    if not needed:
        return
    families, missing = fonts_for(needed)
    for text in texts:
        text.set_fontfamily([DEFAULT, *families])
    for sentence in _sentences(missing):
        if sentence not in _told:
            _told.add(sentence)
            print(f"warning: {sentence}", file=sys.stderr, flush=True)


def fonts_for(characters: Iterable[str]) -> tuple[list[str], list[str]]:
    """The installed font families that have the characters, as few as a greedy search finds, and what none has."""
    left, families = list(characters), []
    for entries in (font_manager.fontManager.ttflist, None):
        # Fonts that were installed after matplotlib made its list are looked for last: that takes a second.
        for name, path in _ordered(entries if entries is not None else _new_fonts()):
            have = _characters(path)
            if any(ord(c) in have for c in left):
                families.append(name)
                left = [c for c in left if ord(c) not in have]
            if not left:
                return families, []
    return families, left


def _ordered(entries: Iterable[font_manager.FontEntry]) -> list[tuple[str, str]]:
    """Names and files of the upright fonts of a list, the preferred first. Last Resort has boxes for everything."""
    found: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (abs(_weight(entry) - 400), str(entry.fname))):
        if entry.style == "normal" and not entry.name.startswith("Last Resort"):
            found.setdefault(entry.name, str(entry.fname))

    def rank(item: tuple[str, str]) -> tuple[int, str]:
        places = [i for i, start in enumerate(_PREFERRED) if item[0].startswith(start)]
        return (places[-1] if places else len(_PREFERRED), item[0])

    return sorted(found.items(), key=rank)


def _weight(entry: font_manager.FontEntry) -> int:
    if isinstance(entry.weight, int):
        return entry.weight
    return font_manager.weight_dict.get(str(entry.weight), 400)


def _new_fonts() -> list[font_manager.FontEntry]:
    """Adds installed fonts that matplotlib's list does not know, and returns them."""
    manager = font_manager.fontManager
    known = {str(entry.fname) for entry in manager.ttflist}
    before = len(manager.ttflist)
    for path in sorted(font_manager.findSystemFonts()):
        if path not in known:
            try:
                manager.addfont(path)
            except (OSError, RuntimeError):  # not scalable, or damaged
                continue
    return manager.ttflist[before:]


@functools.lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read."""
    try:
        return frozenset(FT2Font(str(Path(path))).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _sentences(missing: Iterable[str]) -> list[str]:
    """One for each script: what is missing, and what to install."""
    scripts: dict[tuple[str, str], list[str]] = {}
    for character in missing:
        scripts.setdefault(_script(character), []).append(character)
    return [
        f"No installed font has the {name} of this figure's texts ({' '.join(characters[:_SHOWN])}"
        f"{' ...' if len(characters) > _SHOWN else ''}), they are drawn as boxes; install {package}."
        for (name, package), characters in scripts.items()
    ]


def _script(character: str) -> tuple[str, str]:
    """What a character is called, and the font to install."""
    first = unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]
    if first in _CJK_SCRIPTS:
        return _CJK_SCRIPTS[first], _CJK
    if unicodedata.category(character) in ("So", "Sk") and ord(character) > 0x2300:
        return "emoji and symbols", _EMOJI
    return f"{first.capitalize()} characters", _OTHERS
