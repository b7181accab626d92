"""A message is answered as transformers answers it through the checkpoint's own chat template."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import BundleError
from fmopt.exporters.bundles.chat import chat_prompts

TEMPLATE = "{{ bos_token }}who {{ messages[0]['content'] }}{% if add_generation_prompt %} the cat{% endif %}"


@pytest.fixture(scope="module")
def instructed(tiny_checkpoint, tmp_path_factory):
    """A decoder whose tokenizer has a template, and its bundle."""
    folder = tmp_path_factory.mktemp("chat") / "instructed"
    shutil.copytree(tiny_checkpoint("gpt2", "text-generation"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder, fmopt.export(folder, folder.parent / "bundle")


def test_a_message_is_answered_as_transformers_answers_it(instructed, capsys):
    folder, bundle = instructed
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "wrote the book?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    net = transformers.AutoModelForCausalLM.from_pretrained(folder)
    made = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert main(["predict", str(bundle), "wrote the book?", "--chat", "--max-new-tokens", "6"]) == 0
    wanted = tokenizer.decode(made, skip_special_tokens=True)
    assert f'"text": "{wanted}"'.replace('"', "") in capsys.readouterr().out.replace('"', "")


def test_a_token_that_every_text_begins_with_is_there_once(instructed):
    """Template and tokenizer each put one."""
    folder, bundle = instructed
    model = fmopt.load(bundle)
    (prompt,) = chat_prompts(bundle, model, ["is the captain?"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "is the captain?"}], add_generation_prompt=True, return_dict=False
    )
    assert model.preprocessor.ids(prompt) == wanted


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "has no chat template"),
        ("{{ raise_exception('only in pairs') }}", "cannot write this message: TemplateError: only in pairs"),
        ("{{ ''.__class__.__mro__ }}", "cannot write this message: SecurityError"),
        ("{% for", "cannot write this message: TemplateSyntaxError"),
    ],
)
def test_what_a_template_cannot_do_is_a_line(instructed, template, said, tmp_path):
    _, bundle = instructed
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "chat_template.jinja").unlink()
    if template:
        (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(BundleError, match=said):
        chat_prompts(copy, fmopt.load(bundle), ["hello"])


def test_what_generates_nothing_has_no_chat(tmp_path):
    classifier = SimpleNamespace(pipeline={"task": "text-classification", "outputs": ["logits"]})
    with pytest.raises(BundleError, match="--chat is for models that generate text; text-classification is none"):
        chat_prompts(tmp_path, classifier, ["hello"])
