"""The table that shows how a study stands."""

from meshnet.search.status import Screen


def test_a_table_is_drawn_over_itself_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen()
    screen.live = True
    screen.draw(["short", "x" * 100])
    first = capsys.readouterr().out
    assert max(map(len, first.splitlines())) < 40  # nothing wraps, so two lines up is the table's first
    screen.draw(["again"])
    assert capsys.readouterr().out == "\x1b[2A\x1b[Jagain\n"
    screen.end(["x" * 100])
    assert capsys.readouterr().out == "\x1b[1A\x1b[J" + "x" * 100 + "\n"
