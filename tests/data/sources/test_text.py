"""Tables and JSON as spreadsheets and editors save them."""

import random

import pytest

from meshnet.data.sources.participants import read_participants
from meshnet.data.sources.text import read_json, read_table, read_text
from meshnet.errors import UserError

TEXT = "participant_id\tsite\nsub-1\tKöln\nsub-2\tOslo\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_every_encoding_line_end_and_separator_says_the_same(tmp_path, encoding, end, separator):
    path = tmp_path / "participants.tsv"
    path.write_bytes(TEXT.replace("\n", end).replace("\t", separator).encode(encoding))
    people, notes = read_participants(path)
    assert people == {"1": {"site": "Köln"}, "2": {"site": "Oslo"}}
    assert notes == ([] if encoding != "cp1252" else [
        f"{path}, line 2: found no UTF-8, read as Windows-1252 (Latin-1); save it as UTF-8 to be sure"])


@pytest.mark.parametrize(("content", "fault"), [
    (b"participant_id\tsex\nsub-1\t\x81\xff\n", "line 2: found bytes that are no UTF-8"),
    (b"\xff\xfea\x00\n\x00\x00\xd8", "line 2: found bytes that are no utf-16"),
    (b"participant_id\tsex\nsub-1\tF\tx\n", "line 2: found 3 values, expected 2"),
    (b"participant_id\tsex\tsex\nsub-1\tF\tM\n", "line 1: found 2 columns called 'sex'"),
    (b'participant_id\tsex\nsub-1\t"F\nsub-2\tM\nsub-3\tM\n', "line 2: found a quotation mark that nothing closes"),
    (b"participant_id\tsex\nsub-1\tF\0\n", "line 2: found a zero byte"),
    (b"who\tsex\nsub-1\tF\n", "found the columns who, sex, expected participant_id"),
])
def test_what_is_not_certain_is_refused_with_its_line(tmp_path, content, fault):
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"participants\.tsv") as error:
        read_participants(path)
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_short_and_doubled_lines_are_read_as_far_as_they_are_certain(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text('sex\tparticipant_id\tsite\nF\tsub-1\t"a ""b"""\nM\n\nM\tsub-2\nM\tsub-1\ta "b"\n')
    people, notes = read_participants(path)
    assert people == {"1": {"site": 'a "b"'}, "2": {"sex": "M", "site": ""}}
    assert [note.split(": ", 1)[1] for note in notes] == [
        "found no participant_id, expected one; the line is not used",
        "found 2 values, expected 3; the missing ones are taken as empty",
        "found 1 again with another sex than on line 2, expected one line for each subject; not used for this subject"]
    assert [note.split(": ")[0].removeprefix(f"{path}, ") for note in notes] == ["line 3", "line 5", "line 6"]


def test_a_spreadsheets_word_on_the_separator_and_other_capitals(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("sep=;\r\nSubject;Mask;note\r\na;m;1,5\r\n".encode("utf-8-sig"))
    assert read_table(path, ("subject", "mask")).rows == [(3, {"subject": "a", "mask": "m", "note": "1,5"})]


def test_json_is_read_in_any_encoding_and_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text('{"a": "ü"}', encoding=encoding)
        assert read_json(path, "an object") == ({"a": "ü"}, None)
    for text, fault in (('{"a": 1, "a": 2}', "found the key 'a' twice"), ("{", "cannot be read as JSON"),
                        ("[" * 100_000, "cannot be read as JSON")):
        path.write_text(text)
        with pytest.raises(UserError, match=fault):
            read_json(path, "an object")


def test_any_bytes_are_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "participants.tsv"
    for seed in range(300):
        rng = random.Random(seed)
        content = bytearray(TEXT.encode(rng.choice(["utf-8", "utf-16", "cp1252"])))
        for _ in range(rng.randint(1, 5)):
            content[rng.randrange(len(content))] = rng.choice(b'\0\xff\xfe"\t\n\r;,x\x81')
        path.write_bytes(content)
        try:
            read_text(path)
            read_participants(path)
        except UserError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1, seed
