import pytest

from fmopt.core import plugins
from fmopt.core.errors import ConfigError


def test_a_name_is_a_file_name():
    assert plugins.find("tasks", "text-classification").name == "text-classification"
    assert "quantize_dynamic" in plugins.names("passes")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no pass 'quantize_dynamc'; did you mean 'quantize_dynamic'\?"):
        plugins.find("passes", "quantize_dynamc")


def test_a_name_like_nothing_lists_all():
    with pytest.raises(ConfigError, match=r"there is no runtime 'zzz'; there are: .*onnxruntime, openvino"):
        plugins.find("runtimes", "zzz")
