"""The prompt of a reranker for a query and a document, as in llama.cpp's server.

Source: ``format_prompt_rerank`` of llama.cpp; ``Qwen3Model`` of its converter writes the template.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ascend_gguf.reader import GGUFFile
from ascend_gguf.tokenizer.chat_templates import RERANK_KEY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PLACES = r"\{query\}|\{document\}"
#: The instruction of Qwen3-Reranker's prompt: the rest of its line.
_INSTRUCTION = r"(?<=<Instruct>: ).+"


def rerank_template(file: GGUFFile) -> str | None:
    """The prompt with ``{query}`` and ``{document}``; None if the file has none.

    Raises:
        GGUFError: it is not text, or lacks one of the two.
    """
    template = file.metadata.get(RERANK_KEY)
    if template is None:
        return None
    if not isinstance(template, str) or len(set(re.findall(_PLACES, template))) < 2:
        raise file.error(
            "the reranker's prompt lacks {query} or {document}",
            RERANK_KEY,
            found=f"{template!r:.80}",
            expected="a text with {query} and {document}",
        )
    return template


def takes_instruction(template: str | None) -> bool:
    """True if the template has an instruction that a request can replace."""
    return template is not None and re.search(_INSTRUCTION, template) is not None


def filled(template: str, query: str, document: str, instruction: str | None = None) -> str:
    """Fill a template with a query, a document and, if not None, another instruction."""
    texts = {"{query}": query, "{document}": document}
    if instruction is None:
        return re.sub(_PLACES, lambda place: texts[place[0]], template)
    pattern = f"{_PLACES}|{_INSTRUCTION}"
    return re.sub(pattern, lambda place: texts.get(place[0], instruction), template)


def joined(
    file: GGUFFile, tokenizer: PreTrainedTokenizerFast, query: str, document: str
) -> list[int]:
    """Tokens of a query and a document without a template, with the file's bos, eos and sep.

    An encoder's file that does not name sep has one: BERT and RoBERTa are trained so.
    """
    ends = [tokenizer.eos_token_id] if getattr(tokenizer, "add_eos_token", False) else []
    is_encoder = file.architecture == "bert"
    has_separator = file.metadata.get("tokenizer.ggml.add_sep_token", is_encoder) is True
    return [
        *([tokenizer.bos_token_id] if getattr(tokenizer, "add_bos_token", False) else []),
        *tokenizer.encode(query, add_special_tokens=False),
        *ends,
        *([tokenizer.sep_token_id] if has_separator and tokenizer.sep_token else []),
        *tokenizer.encode(document, add_special_tokens=False),
        *ends,
    ]
