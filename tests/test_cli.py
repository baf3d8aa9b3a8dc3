"""The command ``cmsbert``: the same programs by one name, and completion of all of them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cmsbert_fast import __version__, cli
from cmsbert_fast.commandline import Parser
from tests.frozen.programs import environment

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "transformers", "yaml", "shtab", "rich")


def test_help_and_version_load_no_library(tmp_path: Path) -> None:
    code = f"""
import sys
from cmsbert_fast.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
assert not status and not [name for name in {HEAVY} if name in sys.modules]
"""
    for arguments, told in (
        (["--help"], "commands:"),
        ([], "commands:"),
        (["--version"], f"cmsbert-fast {__version__}"),
    ):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout


def test_python_m_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cmsbert_fast", "inspect", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == "error: Check the path of the data: nowhere does not exist.\n"


@pytest.mark.parametrize("name", cli.PROGRAMS)
def test_every_program_tells_its_own_name_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: cmsbert {name} ")
    assert f"examples:\n  cmsbert {name}" in text
    assert "%(prog)s" not in text


def test_arguments_and_the_exit_status_go_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", "embedded"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main(["predict", "nowhere", "embedded"]) == 2
    assert "There is no checkpoint" in capsys.readouterr().err
    assert cli.main(["train", "--epochz", "3"]) == 2
    assert capsys.readouterr().err == "error: Unrecognized arguments: --epochz 3; did you mean --epochs?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "There is no command 'tarin'; did you mean cmsbert train?"),
        (["frobnicate"], "There is no command 'frobnicate'; choose one of train, predict,"),
        (["--versoin"], "did you mean --version?"),
        (["--print-completion", "fsh"], "invalid choice: 'fsh'"),
        (["inspect", "--maxlength", "3", "x"], "did you mean --max-length?"),
        (["inspect", "x", "--task", "regresion"], "did you mean regression?"),
        (["inspekt"], "did you mean cmsbert inspect?"),
    ],
)
def test_misspelt(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1


def test_ctrl_c_while_a_program_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert cli.main(["train"]) == 130


def test_nobody_reads_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``cmsbert --print-completion zsh | head -1``."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(cli, "_completion", lambda shell: "script")
    with open(write, "w") as closed:  # whose descriptor then leads nowhere
        monkeypatch.setattr(sys, "stdout", closed)
        assert cli.main(["--print-completion", "bash"]) == 141


COMPLETE = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{function} cmsbert "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"""


def test_bash_completes_commands_options_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "mosaic.yaml").write_text("")
    (function,) = re.findall(r"^complete .*-F (\w+) cmsbert$", script.read_text(), re.MULTILINE)

    def completed(words: str) -> set[str]:
        code = COMPLETE.format(script=script, words=words, function=function)
        command = ["bash", "--norc", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert not done.stderr
        return set(done.stdout.split())

    assert completed("cmsbert ''") >= set(cli.PROGRAMS)
    assert completed("cmsbert tr") == {"train"}
    assert completed("cmsbert train --ep") == {"--epochs"}
    assert completed("cmsbert train --variant cmsbert-clr-no-e") == {"cmsbert-clr-no-ema", "cmsbert-clr-no-ema-no-ls"}
    assert completed("cmsbert inspect data --ta") == {"--task"}
    assert completed("cmsbert tables --rep") == {"--report-only"}
    assert completed("cmsbert train --config mos") == {"mosei", "mosi", "mosi-minilm", "mosaic.yaml"}


def test_zsh_has_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "zsh"]) == 0
    text = capsys.readouterr().out
    assert "#compdef cmsbert" in text
    assert "--epochs" in text
    assert all(name in text for name in cli.PROGRAMS)


def test_a_parser_remembers_its_commands() -> None:
    parser = Parser(prog="p")
    one = parser.add_subparsers().add_parser("one")
    assert parser.commands == {"one": one}
    with pytest.raises(ValueError, match="did you mean one"):
        parser.parse_args(["onee"])
