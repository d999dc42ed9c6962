"""YAML and JSON files as mappings, read strictly, so that a text means the same in a file, a flag and an override.

Of YAML's implicit types only null, true, false and decimal numbers are read: ``no``, ``1:30``, ``0o17``, ``2024-01-01``
stay texts, and the field that takes a value says what they are. A key that stands twice is refused with both lines.
"""

import functools
import json
import re
import typing
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import near

NULL = r"~|null|Null|NULL|"
BOOL = r"true|True|TRUE|false|False|FALSE"
INT = r"[-+]?(?:0|[1-9][0-9]*)"
FLOAT = (r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
         r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:\n]')


class Mapping(dict):
    """A mapping from a file. ``lines``: where each key stands, by ``section`` and ``section.key``."""

    lines: dict[str, int]

    def __init__(self, *given, lines: dict[str, int] | None = None):
        super().__init__(*given)
        self.lines = lines or {}


@functools.cache
def yaml_classes() -> tuple[type, type]:
    """The loader and the dumper of this program."""
    import yaml

    def refuse(problem: str, at) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

    class Loader(yaml.SafeLoader):
        """Refuses keys that stand twice, and anchors inside themselves."""

        yaml_implicit_resolvers: typing.ClassVar[dict] = {}

        def compose_mapping_node(self, anchor):
            node, first = super().compose_mapping_node(anchor), {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise refuse("found a list or mapping as a key, expected a name", key)
                if key.value in first:
                    raise refuse(twice(key.value, first[key.value], line), key)
                first[key.value] = line
            return node

        def compose_node(self, parent, index):
            event = self.peek_event()
            known = self.anchors.get(event.anchor) if isinstance(event, yaml.AliasEvent) else None
            if known is not None and known.end_mark is None:  # it is still open
                raise refuse(f"found *{event.anchor} inside &{event.anchor}, expected it after its end", event)
            return super().compose_node(parent, index)

    for tag, pattern, first in (("null", NULL, ["~", "n", "N", ""]), ("bool", BOOL, list("tTfF")),
                                ("int", INT, list("-+0123456789")), ("float", FLOAT, list("-+.0123456789")),
                                ("merge", "<<", ["<"])):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)

    class Dumper(yaml.SafeDumper):
        """Quotes what either this loader or another one would not read as a text."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{FLOAT})\Z"), list("-+.0123456789"))
    return Loader, Dumper


def twice(key: str, first: int, second: int) -> str:
    """The message about a key that stands in two lines."""
    return f"found '{key}' in line {first} and again in line {second}, expected it once; keep one of them"


def parse_yaml(text: str, where: str) -> tuple[object, dict[str, int]]:
    """A YAML document and where its keys stand, of two levels. An empty one is None.

    Raises:
        UserError: naming ``where`` and the line.
    """
    import yaml

    try:
        loader = yaml_classes()[0](text)
        node = loader.get_single_node()
        return (None, {}) if node is None else (loader.construct_document(node), lines_of(node))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split())
        tab = "; indent with spaces" if "'\\t'" in problem else ""
        expected = "" if "expected" in problem else ", expected YAML"
        raise UserError(f"{where}{line}: {problem}{expected}{tab}") from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"{where}: found a value that cannot be read ({type(error).__name__}), expected texts, "
                        "numbers, lists and mappings") from None


def lines_of(node) -> dict[str, int]:
    """Where the keys of a composed mapping stand, of two levels."""
    found = {}
    for key, value in node.value if isinstance(node.value, list) and node.id == "mapping" else []:
        found[key.value] = key.start_mark.line + 1
        if value.id == "mapping":
            found |= {f"{key.value}.{inner.value}": inner.start_mark.line + 1 for inner, _ in value.value}
    return found


def strip_json_comments(text: str) -> str:
    """``text`` without ``// …`` and ``/* … */`` outside strings; line breaks stay, so error positions stay true."""
    pattern = r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/'

    def keep(match: re.Match) -> str:
        token = match.group(0)
        return token if token.startswith('"') else re.sub(r"[^\n]", " ", token)

    return re.sub(pattern, keep, text, flags=re.DOTALL)


def parse_json(text: str, where: str) -> tuple[object, dict[str, int]]:
    """A JSON document (comments allowed) and where its keys stand, of two levels. An empty one is None.

    Raises:
        UserError: naming ``where`` and the line.
    """
    text = strip_json_comments(text)
    if not text.strip():
        return None, {}
    try:
        return json.loads(text), json_lines(text, where)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: line {error.lineno}: {error.msg}; expected JSON (comments are "
                        "allowed)") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: found a value that cannot be read ({type(error).__name__}), expected texts, "
                        "numbers, lists and mappings") from None


def json_lines(text: str, where: str) -> dict[str, int]:
    """Where the keys of valid JSON stand, of two levels; a UserError for a key that stands twice in one object."""
    found, above, last, line = {}, [], "", 1  # above: of every open bracket, its keys (None: a list) and own name
    for token in JSON_TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token in "{[":
            above.append(({} if token == "{" else None, last))
        elif token in "}]":
            above.pop()
        elif token == ":":
            keys, name = above[-1]
            if last in keys:
                raise UserError(f"{where}:{line}: {twice(last, keys[last], line)}")
            keys[last] = line
            if len(above) < 3:
                found[last if len(above) == 1 else f"{name}.{last}"] = line
        else:
            last = json.loads(token)
    return found


def decode(raw: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte-order mark, whatever ends its lines."""
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_file(path: Path, what: str, hint: str) -> Mapping:
    """A YAML or JSON file as a mapping; an empty file is an empty one. ``what`` and ``hint`` are for messages.

    Raises:
        UserError: if the file is missing, cannot be parsed, or holds anything but a mapping.
    """
    try:
        text = decode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}; {hint}{near(path)}") from None
    except (OSError, ValueError) as error:  # UnicodeError is a ValueError, as is a name with a null byte
        raise UserError(f"{path}: cannot be read as a {what} ({error}); expected a YAML or JSON text file") from None
    read = parse_json if path.suffix.lower() == ".json" else parse_yaml
    value, lines = read(text, str(path))
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise UserError(f"{path}: found a {type(value).__name__}, expected sections such as optimizer: and training:")
    return Mapping(value, lines=lines)


def dump(mapping: dict) -> str:
    """``mapping`` as YAML in its own order, short lists on one line."""
    import yaml

    return yaml.dump(mapping, Dumper=yaml_classes()[1], sort_keys=False, default_flow_style=None, allow_unicode=True,
                     width=100)
