import pytest

from fmopt import lookup
from fmopt.errors import ConfigError


def test_a_name_is_a_file_name():
    assert lookup.find("tasks", "text-classification").name == "text-classification"
    assert "quantize_dynamic" in lookup.names("passes")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no pass 'quantize_dynamc'; did you mean 'quantize_dynamic'\?"):
        lookup.find("passes", "quantize_dynamc")


def test_a_name_like_nothing_lists_all():
    with pytest.raises(ConfigError, match=r"there is no runtime 'zzz'; there are: .*onnxruntime, openvino"):
        lookup.find("runtimes", "zzz")
