"""The folders that makers of small data sets write to."""

import pytest

from parts.quickstart.new_folder import new_folder
from utils.errors import ConfigError


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "set") as folder:
        (folder / "half").touch()
        raise KeyError
    assert not (tmp_path / "set").exists()
    with new_folder(tmp_path / "set") as folder:
        assert not list(folder.iterdir())  # what was left of the first time is gone
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "whole"]


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ConfigError, match="is there and is no such set"), new_folder(place):
            pass
    with pytest.raises(ConfigError, match="cannot be made .Not a directory"), new_folder(tmp_path / "mine" / "set"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
