"""The folder of a command."""


def test_a_default_output_is_new_each_time_and_resumed_by_name(train, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*short, "--variant", "bert", "--epochs", 1]
    status, errors = train(*short, "--resume")
    assert status == 2
    assert "no run of reviews" in errors
    for _ in range(2):
        assert train(*short)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["reviews", "reviews-2"]
    (tmp_path / "runs" / "reviews-2" / "summary.md").unlink()
    assert train(*short, "--resume")[0] == 0
    assert (tmp_path / "runs" / "reviews-2" / "summary.md").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 2
