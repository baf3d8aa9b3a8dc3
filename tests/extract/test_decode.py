"""Decoding: the clock of a file, its picture upright, its sound whole, and what hostile files come to."""

import json
import os
import struct
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cmsbert_fast.extract.media import decode, process
from cmsbert_fast.extract.media.process import Decoder, Unreadable, probe
from cmsbert_fast.extract.media.sound import Sound, decode_sound
from tests.extract.media import RATE, turn_phone, write_media


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return np.round(12_000 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def arrow(height: int = 64, width: int = 96) -> np.ndarray:
    """A picture whose top left is red, the rest blue."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 2] = 255
    picture[: height // 2, : width // 2] = (255, 0, 0)
    return picture


def sound_of(path: Path, tmp_path: Path) -> Sound:
    return decode_sound(path, tmp_path / "draft", lambda seconds: None)


def pictures_of(path: Path, side: int = 640, rate: int = 30) -> tuple[list[float], list[np.ndarray], dict[str, Any]]:
    times, pictures, end = [], [], {}
    with Decoder("video", path, side, rate) as decoder:
        for kind, payload in decoder.messages():
            if kind == b"E":
                end = json.loads(payload)
                continue
            time, height, width = struct.unpack_from("<dHH", payload)
            times.append(time)
            pictures.append(np.frombuffer(payload, np.uint8, offset=12).reshape(height, width, 3))
    return times, pictures, end


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_sound_of_any_rate_and_channels_becomes_one(tmp_path: Path, rate: int, layout: str) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(1.0, rate), rate=rate, layout=layout, codecs=("", "pcm_s16le"))
    sound = sound_of(path, tmp_path)
    assert abs(len(sound.samples) - RATE) <= 2
    spectrum = np.abs(np.fft.rfft(sound.samples[2000:14000] * np.hanning(12000)))
    assert abs(spectrum.argmax() * RATE / 12000 - 440) < 2
    assert 10_000 < np.abs(sound.samples[2000:14000]).max() < 13_500
    assert probe(path)["audio"] == {"codec": "pcm_s16le", "rate": rate, "channels": 1 + (layout == "stereo")}


def test_a_stream_that_starts_late_keeps_its_time(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", [arrow()] * 50, tone(1.0), sound_start=0.7, codecs=("mpeg4", "pcm_s16le"))
    sound = sound_of(path, tmp_path)
    assert abs(sound.start - 0.7) < 0.01
    times, _, _ = pictures_of(path)
    assert times[0] == 0.0
    late = write_media(
        tmp_path / "b.mkv",
        [arrow()] * 10,
        tone(1.0),
        times=[0.5 + k / 25 for k in range(10)],
        codecs=("mpeg4", "pcm_s16le"),
    )
    assert abs(pictures_of(late)[0][0] - 0.5) < 0.01
    assert sound_of(late, tmp_path).start < 0.01


def test_the_clock_starts_with_the_first_stream(tmp_path: Path) -> None:
    """A transport stream starts somewhere; players show 0."""
    times = [5.0 + k / 25 for k in range(50)]
    path = write_media(
        tmp_path / "a.ts", [arrow()] * 50, tone(1.5), times=times, sound_start=5.5, codecs=("libx264", "aac")
    )
    with av.open(str(path)) as container:
        assert container.start_time > 4_000_000
    assert abs(pictures_of(path)[0][0]) < 0.05
    assert abs(sound_of(path, tmp_path).start - 0.5) < 0.08


def test_a_gap_in_the_sound_becomes_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for begin in (0.0, 2.0):
            part = tone(1.0)
            for k in range(0, len(part), 800):
                frame = av.AudioFrame.from_ndarray(part[None, k : k + 800], format="s16", layout="mono")
                frame.sample_rate, frame.pts = RATE, round(begin * RATE) + k
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sound = sound_of(path, tmp_path)
    assert abs(len(sound.samples) / RATE - 3.0) < 0.01
    assert abs(sound.filled - 1.0) < 0.01
    assert np.abs(sound.samples[int(1.1 * RATE) : int(1.9 * RATE)]).max() == 0
    assert np.abs(sound.samples[int(2.1 * RATE) : int(2.9 * RATE)]).max() > 10_000


def test_sound_whose_time_had_sound_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(decode, "_send", lambda kind, payload: sent.append(payload))
    sound = decode._Sound(RATE)
    for begin in (0.0, 0.05, 0.1, 0.0, 0.05, 0.15):  # two come a second time
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE // 20), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        sound.add(frame, begin)
    sound.finish()
    assert sound.summary()["cut"] == pytest.approx(0.1)
    assert sum(map(len, sent)) == 2 * sound.summary()["samples"] == pytest.approx(2 * 0.2 * RATE, abs=100)


def test_times_of_a_variable_rate_are_the_files_and_fast_ones_are_thinned(tmp_path: Path) -> None:
    marks = [0.0, 0.1, 0.15, 0.5, 0.9, 1.6]
    path = write_media(tmp_path / "a.mkv", [arrow()] * 6, times=marks)
    assert pictures_of(path)[0] == pytest.approx(marks, abs=0.002)
    path = write_media(tmp_path / "b.mkv", [arrow()] * 120, times=[k / 120 for k in range(120)])
    times, _, end = pictures_of(path)
    assert 28 <= len(times) <= 31
    assert end["seen"] == 120
    path = write_media(tmp_path / "c.mkv", [arrow()] * 25)
    assert len(pictures_of(path)[0]) == 25  # slower than 30 a second: all


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (270, (1, 0))])
def test_phone_videos_are_upright(tmp_path: Path, degrees: int, corner: tuple[int, int]) -> None:
    path = write_media(tmp_path / "a.mp4", [arrow()] * 3)
    turn_phone(path, degrees)
    picture = pictures_of(path)[1][0].astype(int)
    assert picture.shape[:2] == ((64, 96) if degrees % 180 == 0 else (96, 64))
    height, width = picture.shape[:2]
    red = {
        (y, x): picture[height * (1 + 2 * y) // 4, width * (1 + 2 * x) // 4, 0] > 128 for y in (0, 1) for x in (0, 1)
    }
    assert [place for place, is_red in red.items() if is_red] == [corner]


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", [arrow(480, 1280)] * 2)
    assert pictures_of(path)[1][0].shape == (240, 640, 3)


def test_a_songs_cover_is_no_moving_picture(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp3", sound=tone(1.0), codecs=("", "mp3"))
    assert probe(path)["video"] is None
    assert probe(path)["audio"]["rate"] == RATE


HOSTILE = {
    "empty": b"",
    "text": b"hello " * 100,
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "a list of other files": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_media_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(Unreadable, match="decoded"):
        probe(tmp_path / "a.mp4")


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(2.0), codecs=("", "pcm_s16le"))
    path.write_bytes(path.read_bytes()[:40_000])
    sound = sound_of(path, tmp_path)
    assert 1.1 < len(sound.samples) / RATE < 1.3
    whole = write_media(tmp_path / "b.mp4", [arrow()] * 10)
    whole.write_bytes(whole.read_bytes()[:-300])  # without its table of contents
    with pytest.raises(Unreadable):
        probe(whole)


def test_damaged_packets_are_counted(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    path = write_media(tmp_path / "a.mp4", sound=(noise.normal(size=48_000) * 4000).astype(np.int16))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = noise.integers(0, 256, 3000, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    sound = sound_of(path, tmp_path)
    assert sound.lost > 0
    assert abs(len(sound.samples) / RATE - 3.0) < 0.1  # what is missing is silent; the rest keeps its time
    assert sound.filled > 0.1


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_STALL", 0.5)
    monkeypatch.setattr(process, "isolated", lambda *_: ["sleep", "60"])
    with pytest.raises(Unreadable, match="too much time"):
        probe(tmp_path / "a.mp4")


def test_a_decoder_has_little_memory_and_writes_nothing(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(0.1), codecs=("", "pcm_s16le"))
    code = (
        "import json, resource, sys; from cmsbert_fast.extract.media import decode; decode._opened(sys.argv[1]);"
        "names = resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU;"
        "print(json.dumps([resource.getrlimit(name)[0] for name in names]))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[3])}
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    memory, written, seconds = json.loads(said)
    assert memory < 3 << 30
    assert written == 0
    assert 600 <= seconds <= 700


def test_no_folder_beside_the_video_is_searched_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(0.1), codecs=("", "pcm_s16le"))
    trap = tmp_path / "trapped"
    for name in ("json", "av", "numpy", "struct"):
        (tmp_path / f"{name}.py").write_text(f"open({str(trap)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend("")
    assert probe(path)["audio"] is not None
    assert not trap.exists()


def test_wave_written_here_is_what_wave_reads(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(0.5), codecs=("", "pcm_s16le"))
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert np.array_equal(sound_of(path, tmp_path).samples, samples)
