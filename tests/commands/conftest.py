"""The command in this process: for calls that end before anything runs."""

import sys
from types import SimpleNamespace

import pytest

from rnncore.commands.cli import main


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command; return its status and what it printed, as a process would."""

    def run(*arguments):
        monkeypatch.delenv("RNNCORE_BACKEND", raising=False)
        monkeypatch.setattr(sys, "argv", ["rnncore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=out, stderr=err)

    return run
