"""What the first bytes of a file say that it is, where it is none that can be read."""

from cmsbert_fast.data.example import DataError

LENGTH = 4096
_UNPACK = "Unpack {name}: it is {what}."
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"(\xb5/\xfd", "compressed with zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
)
_TORCH_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the number that torch.save began with until 1.6


# Containers and streams of pictures and sound; of MP4 and QuickTime the kind of the first box, after its length.
_RECORDINGS = (
    *(b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"ID3", b"FLV\x01", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"caff", b"#!AMR"),
    *(b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9", b".snd"),
    *(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x06\x0e\x2b\x34"),
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_IFF = {b"RIFF": (b"AVI ", b"WAVE"), b"RF64": (b"WAVE",), b"FORM": (b"AIFF", b"AIFC")}


def is_recording(head: bytes) -> bool:
    """Whether a file of these first `LENGTH` bytes is a video or a sound file."""
    if head.startswith(_RECORDINGS) or head[4:8] in _BOXES or head[8:12] in _IFF.get(head[:4], ()):
        return True
    # MPEG-TS: packets of 188 bytes, or 192 with a time before each.
    return any(head[at : at + 3 * step : step] == b"GGG" for at, step in ((0, 188), (4, 192)))


def check_first_bytes(name: str, head: bytes) -> None:
    """Finds files that are something else than data.

    Args:
        name: Of the file.
        head: Its first `LENGTH` bytes.

    Raises:
        DataError: It is empty, packed, a web page, or what is left of a download; one sentence says what to do.
    """
    if not head:
        raise DataError(f"Get {name} again: it is empty.")
    if not head.strip(b"\0"):
        raise DataError(f"Get {name} again: it begins with zero bytes only, as a download that was not completed does.")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"Get {name} by 'git lfs pull': it is only a pointer of git-lfs to the file.")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise DataError(f"Get {name} again: it is a web page, as a link returns that wants a log-in or a confirmation.")
    if _TORCH_LEGACY in head[:64] or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head):
        raise DataError(f"Save the content of {name} by pickle.dump, as arrays of numpy: it was written by torch.save.")
    if head.startswith(b"PK\x03\x04"):
        raise DataError(_UNPACK.format(name=name, what="a zip archive"))
    for sign, what in _KINDS:
        if head.startswith(sign):
            raise DataError(_UNPACK.format(name=name, what=what))
    if head[257:262] == b"ustar":
        raise DataError(_UNPACK.format(name=name, what="a tar archive"))
