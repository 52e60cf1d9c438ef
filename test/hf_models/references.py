"""Models of transformers that it has without a class for text."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2TextModel,
    DeepseekOcr2TextPreTrainedModel,
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
