"""Our own architectures in Hugging Face format, for what transformers has no network of."""

from __future__ import annotations

from typing import Any

RECURRENT = ("lstm",)  # what these keep of a text does not grow with it


def known_transformers() -> Any:
    """The package transformers, its Auto classes knowing our own architectures too. Importing this module does nothing."""
    import transformers

    if "sasrec" not in transformers.CONFIG_MAPPING:
        from fmopt.models.networks import lstm, sasrec

        transformers.AutoConfig.register("lstm", lstm.LstmConfig)
        transformers.AutoModelForCausalLM.register(lstm.LstmConfig, lstm.LstmForCausalLM)
        transformers.AutoConfig.register("sasrec", sasrec.SasRecConfig)
        transformers.AutoModel.register(sasrec.SasRecConfig, sasrec.SasRecForSequentialRecommendation)
    return transformers
