"""YAML files that users write."""

from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, one_line
from .files import unreadable


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which no section and no key stands twice, as the second would silently replace the first."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # a list as a key, which SafeLoader refuses
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, where: str, remedy: str) -> Any:
    """What a YAML file holds.

    Args:
        where: what errors name, the path and perhaps how one came to it.
        remedy: what to do about a file that is not there.

    Raises:
        ConfigError: it cannot be read, is no YAML, or says a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except OSError as error:
        raise unreadable(where, error, remedy, ConfigError) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no YAML file that can be read ({one_line(error)}); correct it") from error
