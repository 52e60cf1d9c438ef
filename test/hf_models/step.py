"""Step 3.5's text alone, which transformers has as part of a vision model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Step3p7TextConfig
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.step3p7.modeling_step3p7 import (
    Step3p7PreTrainedModel,
    Step3p7TextModel,
)


class Step3p5ForCausalLM(Step3p7PreTrainedModel):
    config_class = Step3p7TextConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutput:
        hidden = self.model(input_ids, **kwargs).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden))
