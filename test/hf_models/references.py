"""Models of transformers that it has without a class for text."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2TextModel,
    DeepseekOcr2TextPreTrainedModel,
)
from transformers.models.muse_glimmer.configuration_muse_glimmer import MuseGlimmerTextConfig
from transformers.models.muse_glimmer.modeling_muse_glimmer import (
    MuseGlimmerPreTrainedModel,
    MuseGlimmerTextModel,
)


class DeepseekOcr2TextForCausalLM(DeepseekOcr2TextPreTrainedModel):
    """The text of DeepSeek-OCR, which computes what DeepSeek-MoE does."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = DeepseekOcr2TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any, **options: Any) -> CausalLMOutput:
        hidden = self.model(input_ids, **options).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden))


class MuseGlimmerTextForCausalLM(MuseGlimmerPreTrainedModel):
    """The text of Muse Glimmer, of whose logits the whole makes the same."""

    config: MuseGlimmerTextConfig
    config_class = MuseGlimmerTextConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = MuseGlimmerTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any, **options: Any) -> CausalLMOutput:
        hidden = self.model(input_ids, **options).last_hidden_state
        cap = self.config.final_logit_softcapping
        logits = self.lm_head(hidden) * self.config.output_multiplier
        return CausalLMOutput(logits=(logits / cap).tanh() * cap)
