"""Pronunciations of words that the dictionary of pocketsphinx lacks, in its phones (ARPABET).

Parts that it has (``well-known``, ``dog's``) are joined, numbers are spelled out, abbreviations named by letters. The
rest goes by rules from letters to sounds. They are rough: aligning a known text forgives a wrong phone.
"""

import re
import unicodedata
from collections.abc import Callable

_SYMBOLS = {
    "&": "and",
    "%": "percent",
    "$": "dollars",
    "€": "euros",
    "£": "pounds",
    "+": "plus",
    "@": "at",
    "=": "equals",
}
_QUOTES = dict.fromkeys((0x2018, 0x2019), "'")
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_ONES, _TENS = _NUMBERS.split()[:20], _NUMBERS.split()[20:]
_THOUSANDS = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_LETTERS = dict(
    a="EY", b="B IY", c="S IY", d="D IY", e="IY", f="EH F", g="JH IY", h="EY CH", i="AY", j="JH EY", k="K EY", l="EH L",
    m="EH M", n="EH N", o="OW", p="P IY", q="K Y UW", r="AA R", s="EH S", t="T IY", u="Y UW", v="V IY",
    w="D AH B AH L Y UW", x="EH K S", y="W AY", z="Z IY",
)  # fmt: skip
# The longest rule that fits is applied. ^ and $ are the ends of the word, a lower-case letter in brackets is only seen.
_RULES = """
tion=SH AH N; sion=ZH AH N; ough=AO; augh=AO; eigh=EY; igh=AY; tch=CH; dge=JH; sch=SH; ture=CH ER; ious=IY AH S;
ous=AH S; ch=CH; sh=SH; th=TH; ph=F; wh=W; ck=K; qu=K W; ng$=NG; ng=NG G; nk=NG K; gh=G; ^kn=N; ^wr=R; ^ps=S; ^x=Z;
mb$=M; ee=IY; ea=IY; oo=UW; ou=AW; ow=OW; oi=OY; oy=OY; ai=EY; ay=EY; au=AO; aw=AO; ei=EY; ey$=IY; ey=EY; ie$=IY;
ie=IY; oa=OW; oe=OW; ue$=UW; ui=UW; ew=UW; eu=UW; er=ER; ir=ER; ur=ER; or=AO R; ar=AA R; le$=AH L; es$=Z; ed$=D;
a$=AH; e$=; i$=IY; o$=OW; u$=UW; y$=IY; ^y=Y; y=IH; ce=S EH; ci=S IH; cy=S IY; ce$=S; ge$=JH; gi=JH IH; gy=JH IY;
bb=B; cc=K; dd=D; ff=F; gg=G; ll=L; mm=M; nn=N; pp=P; rr=R; ss=S; tt=T; zz=Z; a=AE; b=B; c=K; d=D; e=EH; f=F; g=G;
h=HH; i=IH; j=JH; k=K; l=L; m=M; n=N; o=AA; p=P; q=K; r=R; s=S; t=T; u=AH; v=V; w=W; x=K S; z=Z
"""
_TABLE = dict(rule.strip().split("=") for rule in _RULES.split(";"))
_LONG = dict(a="EY", e="IY", i="AY", o="OW", u="UW")
_CONSONANTS = "bcdfghjklmnpqrstvz"


def pronounce(word: str, look_up: Callable[[str], str | None]) -> list[str]:
    """Pronunciations of a word as written in a text, the likeliest first; none where it has nothing to pronounce.

    Args:
        word: May have punctuation.
        look_up: Phones of a lower-case word of the dictionary.
    """
    plain = unicodedata.normalize("NFKD", word.translate(_QUOTES))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    bare = re.sub(r"^[^\w&%$€£+@]+|[^\w&%$€£+@]+$", "", plain)
    lower = bare.lower()
    found = look_up(lower)
    if found is not None:
        return [found]
    parts = re.findall(r"\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?|[a-z']+|[&%$€£+@]", lower)
    if not parts:
        return []
    options = [_part(part, look_up, whole=bare if len(parts) == 1 else "") for part in parts]
    first = " ".join(choice[0] for choice in options)
    others = [" ".join(choice[min(1, len(choice) - 1)] for choice in options)]
    return [first, *(other for other in others if other != first)]


def _part(part: str, look_up: Callable[[str], str | None], whole: str) -> list[str]:
    if part in _SYMBOLS:
        return _said(_SYMBOLS[part], look_up)
    if part[0].isdigit():
        return [phones for words in number_words(part) for phones in _said(words, look_up)]
    letters = part.replace("'", "")
    if not letters:
        return [look_up("a") or "AH"]
    if whole.isupper() and 1 < len(letters) <= 5:
        return [" ".join(_LETTERS[c] for c in letters), _rules(letters)]
    found = look_up(part.strip("'")) or look_up(letters)
    if found is not None:
        return [found]
    for ending, phones in (("s", "Z"), ("ed", "D"), ("ing", "IH NG"), ("ly", "L IY"), ("er", "ER")):
        stem = letters.removesuffix(ending)
        known = look_up(stem) or look_up(f"{stem}e") if stem != letters and len(stem) > 2 else None
        if known is not None:
            return [f"{known} {phones}"]
    return [_rules(letters)]


def _said(words: str, look_up: Callable[[str], str | None]) -> list[str]:
    return [" ".join(look_up(word) or _rules(word) for word in words.split())]


def number_words(number: str) -> list[str]:
    """How a number is said: as a number, and as a year where it may be one."""
    ordinal = number[-2:] in ("st", "nd", "rd", "th")
    digits, _, decimals = number.rstrip("stndrh").replace(",", "").partition(".")
    value = int(digits[:12])
    said = _cardinal(value)
    if decimals:
        said += " point " + " ".join(_ONES[int(c)] for c in decimals)
    if ordinal:
        said = _ordinal(said)
    years = []
    if not decimals and "," not in number and len(digits) == 4 and 11 <= value // 100 <= 20 and value % 100 >= 10:
        years = [f"{_cardinal(value // 100)} {_cardinal(value % 100)}"]
    return [said, *years] if len(digits) <= 12 else [" ".join(_ONES[int(c)] for c in digits)]


def _cardinal(value: int) -> str:
    if value < 20:
        return _ONES[value]
    for size, name in _THOUSANDS:
        if value >= size:
            rest = f" {_cardinal(value % size)}" if value % size else ""
            return f"{_cardinal(value // size)} {name}{rest}"
    rest = f" {_ONES[value % 10]}" if value % 10 else ""
    return _TENS[value // 10 - 2] + rest


def _ordinal(said: str) -> str:
    irregular = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
                 "twelve": "twelfth"}  # fmt: skip
    *before, last = said.split()
    if last not in irregular:
        last = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*before, irregular.get(last, last)])


def _rules(letters: str) -> str:
    """Phones of letters by `_TABLE`."""
    phones: list[str] = []
    at = 0
    while at < len(letters):
        magic = re.match(rf"([aeiou])([{_CONSONANTS}])e$", letters[at:])
        if magic and at:
            phones += [_LONG[magic[1]]]
            at += 1
            continue
        for length in range(min(5, len(letters) - at), 0, -1):
            piece = letters[at : at + length]
            marked = [f"{piece}$"] if at + length == len(letters) else []
            marked += [f"^{piece}"] if at == 0 else []
            rule = next((_TABLE[name] for name in (*marked, piece) if name in _TABLE), None)
            if rule is not None:
                phones += rule.split()
                at += length
                break
        else:
            at += 1
    return " ".join(phones or ["AH"])
