"""YAML that people write: a key that is given twice is refused."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UsageError, in_one_line


class YamlError(ValueError):
    """Text that is refused. The message has no subject: "is not YAML: …", or "has the key x twice …"."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, which by itself takes the last value of a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written, before `<<` merges others into it; raises YamlError for equal keys."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                where = f"in line {line}" if first == line else f"in lines {first} and {line}"
                raise YamlError(f"has the key {key.value} twice, {where}; keep one")
            lines[key.tag, key.value] = line
        return node


def parse(text: str) -> Any:
    """Return the content of a YAML document; raises YamlError for text that is not YAML, or has a key twice."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 it is a SafeLoader
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(f"is not YAML: {reason}{where}") from None
    except RecursionError:
        raise YamlError("is not YAML of settings: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML does not check dates and numbers that it converts
        raise YamlError(f"is not YAML: {in_one_line(error)}") from None


def read_yaml(file: Path, option: str) -> Any:
    """Return the content of a YAML file that an `option` names; raises UsageError where it cannot be read."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {file} is not YAML: {error}") from None
    except YamlError as error:
        raise UsageError(f"{option} {file} {error}") from None
