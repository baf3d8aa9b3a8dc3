"""Atomic writing: what has its name is whole, and on the disk."""

import pytest

from cmsbert_fast import atomic


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "step"
    atomic.replace_file(path, lambda draft: draft.write_text("1"))

    def fail(draft):
        draft.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.replace_file(path, fail)
    assert path.read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["step"]
    atomic.replace_file(path, lambda draft: draft.write_text("2"))
    assert path.read_text() == "2"


def test_a_folder_is_replaced_file_by_file(tmp_path):
    folder = tmp_path / "best"
    for text in ("old", "new"):
        atomic.replace_folder(folder, lambda path, text=text: (path / "weights").write_text(text))
        assert (folder / "weights").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_what_has_its_name_outlasts_a_loss_of_power(tmp_path, disk):
    for text in ("old", "new"):
        atomic.replace_file(tmp_path / "file", lambda draft, text=text: draft.write_text(text))
        atomic.replace_folder(tmp_path / "best", lambda path, text=text: (path / "weights").write_text(text))
        for path in (tmp_path / "file", tmp_path / "best"):
            assert disk.holds(path)
            assert disk.knows_name(path)
