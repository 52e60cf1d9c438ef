"""A transformers tokenizer from a GGUF file's own metadata.

The way of a vocabulary through this folder::

    vocabulary.py      metadata -> tokens, their types, special ids: checked once
    added_tokens.py    which tokens are found in text before anything else, and which end a turn
    pre_tokenizers.py  ``tokenizer.ggml.pre`` -> how text is cut into words: one table
    bpe.py             byte-level BPE     (``tokenizer.ggml.model`` gpt2)
    sentencepiece.py   SentencePiece BPE  (llama, gemma4)
    chat_templates.py  the templates of chats; template_trial.py: whether they come to an end
    reranking.py       the prompt of a reranker
    load.py            all of it as one transformers tokenizer (load_tokenizer)

What a file means is what llama.cpp makes of it; the work is done by the ``tokenizers`` library.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from ascend_gguf.tokenizer.load import load_tokenizer, stop_token_ids

__all__ = ["load_tokenizer", "stop_token_ids"]
