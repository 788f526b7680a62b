"""The door `python -m escdiff.evaluation`."""

import pytest

from escdiff.evaluation import __main__ as door


def test_ctrl_c_says_that_the_command_goes_on(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("escdiff.evaluation.studies.curves.draw_curves", stopped)
    monkeypatch.setattr("sys.argv", ["evaluation", "curves", "run"])
    with pytest.raises(SystemExit) as end:
        door.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command goes on after what is finished\n"
