"""YAML as a person may have written it, or an attacker: read safely, within bounds, every value a copy of its own.

- No tags but YAML's own: nothing is constructed that is not a plain value.
- A key given twice is an error: the second would silently win.
- An alias is a copy of what it names. Aliases of aliases write out to any size, so that size is bounded before they are
  written; and a key that is set in one copy leaves the others as they are.
"""

from pathlib import Path
from typing import Any

import yaml

from llm_rlhf.errors import RecipeError, bounded, shown

LARGEST_FILE = 256 * 1024  # bytes: a thousand sources; the recipes that ship have five thousand, and PyYAML is slow
LARGEST_WRITTEN = 2**20  # characters, a value counting as PER_VALUE more, once every alias is written out
PER_VALUE = 50  # twenty thousand values at most; PyYAML reads forty thousand a second
DEEPEST = 50  # levels; the keys that there are take seven
LONGEST_NUMBER = 100  # characters: more is no setting, and Python neither reads nor prints integers of thousands


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping of sections in a recipe's file.

    Raises:
        FileNotFoundError: where there is none.
        RecipeError: where it cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        text = data[:LARGEST_FILE].decode("utf-8-sig") if len(data) <= LARGEST_FILE else ""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}") from None
    if len(data) > LARGEST_FILE:
        raise RecipeError(
            f"The recipe {path} is larger than {LARGEST_FILE // 1024} KiB, which no recipe is; name the right file. "
            "Many sources fit into one line where they lie in a folder (data/*.jsonl)."
        )
    tree = read_yaml(text, f"The recipe {path}")
    if not isinstance(tree, dict):
        raise RecipeError(f"The recipe {path} must be a mapping of sections (name, model, data, ...).")
    return tree


def read_yaml(text: str, what: str) -> Any:
    """The value of a text; `what` it is, for a message.

    Raises:
        RecipeError: where it is no YAML of plain values, or too large, too deep or too long in a number.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{what} is not plain YAML: {bounded(str(error), 800)}") from None


class _PlainLoader(yaml.SafeLoader):
    """The safe loader of PyYAML with the bounds above."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = self._written = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. That of an alias is copied: PyYAML gives all of them one, and one value."""
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._level += 1
        if self._level > DEEPEST:
            raise _refused(f"it is nested deeper than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        if not alias:
            self._count(node)
        elif node.end_mark is None:  # it is set when a list or a mapping is whole
            raise _refused("an alias stands within what it names, which has no end", mark)
        else:
            node = self._copy(node, self._level, mark)
        self._level -= 1
        return node

    def _copy(self, node: Any, level: int, mark: Any) -> Any:
        if level > DEEPEST:
            raise _refused(f"with its aliases written out, it is nested deeper than {DEEPEST} levels", mark)
        self._count(node)
        if isinstance(node, yaml.ScalarNode):
            return yaml.ScalarNode(node.tag, node.value, node.start_mark, node.end_mark, node.style)
        if isinstance(node, yaml.MappingNode):
            items: list[Any] = [tuple(self._copy(of, level + 1, mark) for of in pair) for pair in node.value]
        else:
            items = [self._copy(of, level + 1, mark) for of in node.value]
        return type(node)(node.tag, items, node.start_mark, node.end_mark, node.flow_style)

    def _count(self, node: Any) -> None:
        self._written += PER_VALUE + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self._written > LARGEST_WRITTEN:
            raise _refused(
                "with every alias written out it has more than twenty thousand values, or a megabyte of text; a recipe "
                "that means well has less",
                node.start_mark,
            )

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """What a node stands for. PyYAML lets through what Python says of a number, date or tag that does not fit."""
        is_number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > LONGEST_NUMBER:
            raise _refused(f"{shown(node.value, 40)} is a number of {len(node.value):,} digits", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            tag = node.tag.rpartition(":")[2]
            said = f"{shown(node.value, 80) if isinstance(node, yaml.ScalarNode) else 'what stands here'} is no {tag}"
            raise _refused(f"{said} ({error})", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise _refused(f"the key {shown(key_node.value, 80)} stands twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _refused(problem: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
