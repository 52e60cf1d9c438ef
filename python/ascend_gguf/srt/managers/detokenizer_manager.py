"""Answers to prompts that end inside a character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.runtime_context import get_serving

from ascend_gguf.srt.utils.hf_transformers.tokenizer import reads_tokenizer_from
from ascend_gguf.tokenizer.characters import TokenBytes, split_at_character


def _decode_batch_token_id_output(original: Callable, self: Any, recv_obj: Any) -> Any:
    """AROUND ``DetokenizerManager._decode_batch_token_id_output``."""
    split_prompts_at_characters(self, recv_obj)
    return original(self, recv_obj)


def split_prompts_at_characters(self: Any, recv_obj: Any) -> None:
    """Let a prompt end with a whole character.

    The engine decodes an answer behind the last tokens of its prompt, and takes as many letters
    off the text as those tokens have alone.  That is wrong where a character spans both.
    """
    if not hasattr(self, "ascend_gguf_bytes"):
        is_ours = reads_tokenizer_from(get_serving().tokenizer_path)
        self.ascend_gguf_bytes = TokenBytes(self.tokenizer) if is_ours else None
    if self.ascend_gguf_bytes is None:
        return
    for i, rid in enumerate(recv_obj.rids):
        if rid not in self.decode_status:
            ids, end = recv_obj.decode_ids[i], recv_obj.read_offsets[i]
            prompt, answer = split_at_character(ids[:end], ids[end:], self.ascend_gguf_bytes)
            recv_obj.decode_ids[i] = prompt + answer
            recv_obj.read_offsets[i] = len(prompt)
