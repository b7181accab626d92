"""A message as a checkpoint's own chat template writes it, for a bundle that goes on from texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import BundleError, explained, reading
from fmopt.core.model import continues_texts
from fmopt.models.received import look_through


def chat_prompts(bundle: Path, model: Any, messages: Sequence[str]) -> list[str]:
    """For each message of a user, the text after which the model of an opened bundle answers it.

    The template is that of the bundle's tokenizer files, rendered by transformers in Jinja's sandbox. The text is one that the
    bundle's tokenizer reads as exactly the tokens that `apply_chat_template` gives. BundleError where the bundle has no
    template, where its template refuses a message, or where no text has these tokens.
    """
    import transformers

    if not continues_texts(model.pipeline):
        raise BundleError(f"{bundle}: --chat is for models that generate text; {model.pipeline['task']} is none")
    look_through(bundle)
    with reading(f"{bundle}: its tokenizer files", BundleError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(bundle, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise BundleError(
            f"{bundle} has no chat template; leave --chat out, or write the prompt as the model was trained on it"
        )
    return [_prompt(bundle, model, tokenizer, message) for message in messages]


def _prompt(bundle: Path, model: Any, tokenizer: Any, message: str) -> str:
    conversation = [{"role": "user", "content": message}]
    with explained(f"{bundle}: its chat template cannot write this message", BundleError):
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    # A tokenizer that begins every text with a token of its own would put it before that of the template.
    for prompt in (text, text.removeprefix(tokenizer.bos_token or "")):
        if model.preprocessor.ids(prompt, most=len(ids) + 2) == list(ids):
            return str(prompt)
    raise BundleError(f"{bundle}: no text is read as the tokens that its chat template gives; write the prompt by hand")
