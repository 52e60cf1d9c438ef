"""A transformers tokenizer from a GGUF file's own metadata.

The way of a vocabulary through this folder::

    vocabulary.py      metadata -> tokens, their types, special ids: checked once
    added_tokens.py    special tokens, found in text first; stop tokens
    pre_tokenizers.py  ``tokenizer.ggml.pre`` -> regular expressions: one table
    bpe.py             byte-level BPE     (``tokenizer.ggml.model`` gpt2)
    sentencepiece.py   SentencePiece BPE  (llama, gemma4)
    chat_templates.py  chat templates; template_language.py: what they are written in;
                       template_trial.py: do they finish in time and memory?
    reranking.py       the prompt of a reranker
    load.py            all of it as one transformers tokenizer (load_tokenizer)

llama.cpp defines what a file means; the ``tokenizers`` library does the work.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from ascend_gguf.tokenizer.load import check_tokenizer, load_tokenizer, stop_token_ids

__all__ = ["check_tokenizer", "load_tokenizer", "stop_token_ids"]
