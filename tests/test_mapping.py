"""YAML and JSON are read strictly: what a text means does not depend on where it stands."""

import pytest
import yaml

from meshnet.config import Config, resolve
from meshnet.errors import UserError
from meshnet.mapping import decode, dump, parse_json, parse_yaml
from meshnet.recipe import load_recipes, parse, read_mapping


def refusal(path):
    with pytest.raises(UserError) as error:
        load_recipes([path])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "text", "key", "first", "second"), [
    ("a.yaml", "loss:\n  name: dice\nmodel: {channels: 3}\nloss:\n  dice_weight: 2\n", "loss", 1, 4),
    ("a.yaml", "loss:\n  name: dice\n  dice_weight: 1\n\n  name: ce\n", "name", 2, 5),
    ("a.yaml", "model: {channels: 3, norm: group,\n  channels: 5}\n", "channels", 1, 2),
    ("a.yaml", 'loss: {}\n"loss": {}\n', "loss", 1, 2),
    ("a.yaml", "search:\n  lr: uniform(1, 2)\n  lr: uniform(2, 3)\n", "lr", 2, 3),
    ("a.yaml", "run:\n  fold: 1\n  fold: 2\n", "fold", 2, 3),
    ("a.yaml", "optimizer:\n  param_groups:\n  - match: a\n    lr: 1\n    match: b\n", "match", 3, 5),
    ("a.json", '{"loss": {"name": "ce"},\n// a comment\n"loss": {}}', "loss", 1, 3),
    ("a.json", '{"loss": {\n"name": "ce",\n"dice_weight": 1, "name": "dice"}}', "name", 2, 3),
    ("a.JSON", '{"a": [{"b": "x:y"}, {"b": 1}],\n "\\u0061": 2}', "a", 1, 2),
])
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, name, text, key, first, second):
    path = tmp_path / name
    path.write_text(text)
    assert refusal(path) == (f"{path}:{second}: found '{key}' in line {first} and again in line {second}, expected it "
                             "once; keep one of them")


def test_the_same_key_in_different_places_is_no_double(tmp_path):
    assert parse_yaml("a: {b: 1}\nc: {b: 2}\nd: [{b: 1}, {b: 2}]\n", "x")[1] == {
        "a": 1, "a.b": 1, "c": 2, "c.b": 2, "d": 3}
    assert parse_json('{"a": {"b": 1},\n"c": [{"b": "b:{"}, {"b": 2}]}', "x")[1]["c"] == 2


def test_an_anchor_is_merged_and_a_key_beside_it_wins(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("run: &x {fold: 1, seed: 2}\nloss: {name: dice}\naugment: &off {flip: 0.5, noise: 0.1}\n")
    assert load_recipes([path]).augment.flip == 0.5
    path.write_text("run: &base {channels: 4, norm: group}\nmodel:\n  <<: *base\n  norm: none\n")
    assert (load_recipes([path]).model.channels, load_recipes([path]).model.norm) == (4, "none")
    path.write_text("model: &m\n  options: *m\n")
    assert refusal(path) == f"{path}:2: found *m inside &m, expected it after its end"


def both(tmp_path, field, text):
    """The value of a field by file, override and flag, or that it was refused."""
    section, name = field.split(".")
    path, found = tmp_path / "both.yaml", []
    path.write_text(f"{section}:\n  {name}: {text}\n")
    for arguments in (["--recipe", str(path)], ["--override", f"{field}={text}"], [f"--{field}", text]):
        try:
            found.append(getattr(getattr(parse("train.py", "", lambda parser: None, arguments)[1], section), name))
        except UserError as error:
            assert "\n" not in str(error) and field in str(error) and text in str(error)
            found.append("refused")
    return found


@pytest.mark.parametrize(("field", "text", "value"), [
    ("training.precision", "no", "no"), ("training.precision", "null", "auto"),
    ("training.precision", "off", "refused"),
    ("training.gradient_clipping", "yes", True), ("training.gradient_clipping", "Off", False),
    ("training.gradient_clipping", "on", True), ("training.gradient_clipping", "1", "refused"),
    ("training.max_epochs", "1e2", 100), ("training.max_epochs", "1_000", "refused"),
    ("training.max_epochs", "012", 12),
    ("training.max_epochs", "0o17", "refused"), ("training.max_epochs", "0x10", "refused"),
    ("training.max_epochs", "1:30", "refused"), ("training.max_epochs", "yes", "refused"),
    ("training.max_epochs", "2.0", 2), ("training.max_epochs", "2.5", "refused"),
    ("optimizer.lr", "1e-3", 0.001), ("optimizer.lr", ".001", 0.001), ("optimizer.lr", "1:30.5", "refused"),
    ("optimizer.lr", "1.5e+300", "refused"), ("training.max_epochs", "2e+20", "refused"),
    ("optimizer.lr", "0,001", "refused"),
    ("optimizer.lr", "null", None), ("optimizer.lr", "no", "refused"), ("optimizer.lr", "0b1", "refused"),
    ("tracking.project", "2024", "2024"), ("tracking.project", "2024-05-01", "2024-05-01"),
    ("tracking.project", "no", "no"), ("tracking.project", "12:30", "12:30"), ("tracking.project", "007", "007"),
    ("model.norm", "none", "none"), ("model.norm", "off", "refused"),
    ("training.memory_budget", "800MB", "800MB"),
])
def test_a_text_means_the_same_in_file_override_and_flag(tmp_path, field, text, value):
    expected = 0.001 if (field, value) == ("optimizer.lr", None) else value
    assert both(tmp_path, field, text) == [expected] * 3


def test_byte_order_marks_and_line_ends_change_nothing(tmp_path):
    text = "# a comment\nloss:\n  name: dice\n  dice_weight: 2\n"
    plain = tmp_path / "plain.yaml"
    plain.write_text(text)
    expected = load_recipes([plain])
    assert expected.loss.name == "dice"
    for number, raw in enumerate((b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode(),
                                  text.replace("\n", "\r").encode(), text.encode("utf-16"))):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(raw)
        assert load_recipes([path]) == expected
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"loss":\r\n {"name": "dice", "dice_weight": 2}}\r\n')
    assert load_recipes([path]) == expected
    assert decode("é\r\n".encode()) == "é\n"


@pytest.mark.parametrize(("text", "line", "words"), [
    ("loss:\n\tname: ce\n", 2, "indent with spaces"),
    ("loss:\n  nam: ce\n", 2, "unknown key 'loss.nam'; did you mean 'name'?"),
    ("model: {channels: 3}\nloss:\n  name: cee\n", 3, "loss.name: found 'cee'"),
    ("model: {channels: 3}\nlos:\n  name: ce\n", 2, "unknown section 'los'; did you mean 'loss'?"),
    ("loss:\n- name\n", 1, "section 'loss': found a list, expected keys and values below it"),
    ("loss:\n", 1, "section 'loss': found nothing"),
    ("loss: dice\n", 1, "section 'loss': found 'dice'"),
    ("search: [lr]\n", 1, "section 'search': found a list"),
    ("search: lr\n", 1, "section 'search': found 'lr'"),
    ("search:\n", 1, "section 'search': found nothing"),
    ("search: {}\n", 1, "section 'search': found an empty mapping"),
    ("run: 3\n", 1, "section 'run': found 3"),
    ("loss: {name: ce}\n---\nloss: {name: dice}\n", 2, "document"),
    ("? [1]\n: 2\n", 1, "found a list or mapping as a key, expected a name"),
    ("loss: {name: !odd ce}\n", 1, "!odd"),
    ("loss: {name: *nobody}\n", 1, "nobody"),
    ("scheduler:\n  T_max: 0\n", 2, "scheduler.T_max: found 0, expected at least 1"),
])
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ") and words in message, message


@pytest.mark.parametrize(("name", "raw"), [
    ("a.yaml", b"loss: {name: \x00}"), ("a.yaml", b"\xff\xfe\x00"), ("a.yaml", b"loss: {name: \xe9}"),
    ("a.yaml", b"loss: !!int word"), ("a.yaml", b"loss: !!timestamp word"), ("a.yaml", b"[" * 5000),
    ("a.json", b"[" * 100000), ("a.json", b'{"a": ' + b"1" * 5000 + b"}"), ("a.json", b"[1]"), ("a.json", b'{"a" 1}'),
    ("a.yaml", b"optimizer: {param_groups: [{match: a, 1: 2}]}"), ("a.yaml", b"model: {options: {1: 2}}"),
])
def test_nothing_in_a_file_ends_in_more_than_a_line(tmp_path, name, raw):
    path = tmp_path / name
    path.write_bytes(raw)
    assert refusal(path).startswith(str(path))


def test_a_folder_and_a_name_that_cannot_be_are_refused(tmp_path):
    assert "cannot be read as a recipe" in refusal(tmp_path)
    assert "cannot be read as a recipe" in refusal("a\0b.yaml")
    assert "cannot be read as a recipe" in refusal("a" * 300 + ".yaml")


def test_what_is_dumped_is_read_back_by_this_program_and_by_others():
    given = {"a": {"texts": ["no", "1e2", "007", "1:30", "2024-01-01", "", "null", "é"], "numbers": [1, 1e-5, 2.0],
                   "flags": [True, None]}}
    assert parse_yaml(dump(given), "x")[0] == given == yaml.safe_load(dump(given))


def test_an_empty_file_is_an_empty_recipe(tmp_path):
    for name, raw in (("a.yaml", b""), ("b.json", b""), ("c.yaml", b"\xef\xbb\xbf"), ("d.json", b"// x\r\n"),
                      ("e.yaml", b"---\n...\n")):
        (tmp_path / name).write_bytes(raw)
        assert read_mapping(tmp_path / name) == {} and load_recipes([tmp_path / name]) == Config()


def test_overrides_are_checked_together(tmp_path):
    given = ["--override", "training.warmup_epochs=60", "training.max_epochs=100"]
    assert parse("train.py", "", lambda parser: None, given)[1].training.warmup_epochs == 60
    given = ["--override", "scheduler.monitor=val_dice_ema", "ema.enabled=on"]
    assert parse("train.py", "", lambda parser: None, given)[1] != resolve(Config())
