import pytest

from fmopt.core.errors import ConfigError
from fmopt.core.recipe import Recipe, Step, read_recipe


def test_a_recipe_of_the_users(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('runtime = "onnxruntime"\nprecision = "int8"\n[[steps]]\nuse = "quantize_dynamic"\n')
    recipe = read_recipe(path)
    assert recipe == Recipe(name="mine", runtime="onnxruntime", precision="int8", steps=(Step(use="quantize_dynamic"),))
    assert recipe.steps[0].build().stage == "graph"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('runtime = "onxruntime"\n', "there is no runtime 'onxruntime'; did you mean 'onnxruntime'"),
        ('runtime = "onnxruntime"\n[[steps]]\nuse = "quantise"\n', "there is no pass 'quantise'"),
        (
            'runtime = "onnxruntime"\n[[steps]]\nuse = "quantize_dynamic"\noptions = { speed = 3 }\n',
            "pass 'quantize_dynamic' has no option 'speed'",
        ),
        ("runtime = ", "is not a recipe"),
        ('name = "x"\n', r"is not a recipe: .*runtime"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_missing_recipe_file(tmp_path):
    with pytest.raises(ConfigError, match="there is no recipe file"):
        read_recipe(tmp_path / "none.toml")
