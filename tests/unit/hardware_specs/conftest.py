"""Device files that tests write, and how a wrong one is refused."""

import pytest
import yaml

from dse.errors import ConfigError
from hardware_specs.loader import load_device


@pytest.fixture
def write(tmp_path):
    """Write a document, or a text as it is, to a file and return its path."""

    def to_file(content, name="toy.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def refused(write):
    """Return the one line that the file of a device gets, which begins with its name."""

    def line(content):
        path = write(content)
        with pytest.raises(ConfigError) as caught:
            load_device(path)
        text = str(caught.value)
        assert text.startswith(str(path)), text
        assert "\n" not in text
        assert caught.value.exit_code == 2
        return text

    return line
