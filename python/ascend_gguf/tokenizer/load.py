"""From a GGUF file to a transformers tokenizer."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from tokenizers.processors import TemplateProcessing

from ascend_gguf.reader import open_gguf
from ascend_gguf.tokenizer.added_tokens import added_tokens, end_of_generation_ids
from ascend_gguf.tokenizer.bpe import byte_level_bpe
from ascend_gguf.tokenizer.chat_templates import chat_templates
from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from ascend_gguf.tokenizer.sentencepiece import RAW_BPE, raw_bpe, sentencepiece
from ascend_gguf.tokenizer.unigram import IDS, unigram
from ascend_gguf.tokenizer.vocabulary import Vocabulary, read_vocabulary
from ascend_gguf.tokenizer.wordpiece import wordpiece

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_OTHER_TOKENIZER = "Pass the original model's tokenizer with --tokenizer-path."

#: Argument of a transformers tokenizer -> key below ``tokenizer.ggml``.
_NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
#: Ids of vocabularies that do not say, by their kind.
_DEFAULTS = {"llama": {"unk_token": 0, "bos_token": 1, "eos_token": 2}, "t5": IDS}


def load_tokenizer(
    path: str | os.PathLike, *, check_template: bool = True
) -> PreTrainedTokenizerFast:
    """The tokenizer of the model in the GGUF file at ``path``, chat template included.

    Token ids are llama.cpp's for the same text.  Special tokens in the text are recognized, and
    ``encode`` adds bos and eos as the file says.

    Args:
        path: a GGUF file, any one file of a split model, or the directory of one model.
        check_template: refuse a file whose chat template cannot be used; otherwise ignore it.

    Raises:
        GGUFError: the vocabulary is missing, damaged or of an unknown type, or the chat template
            cannot be used.
    """
    from transformers import PreTrainedTokenizerFast

    backend, options = _parts(path, check_template)
    around = backend.post_processor
    # transformers' own classes set their backend this way; tokenizer_object= would copy it, which
    # takes longer than everything else.
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    tokenizer._tokenizer = backend  # type: ignore[assignment]  # declared as None
    PreTrainedTokenizerFast.__init__(tokenizer, **options, clean_up_tokenization_spaces=False)
    if around is not None:  # which transformers replaces by its own, of bos and eos
        backend.post_processor = around
    return tokenizer


def check_tokenizer(path: str | os.PathLike) -> None:
    """Raises GGUFError as :func:`load_tokenizer`, without transformers, which takes a second."""
    _parts(path, check_template=True)


def _parts(path: str | os.PathLike, check_template: bool) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of the ``tokenizers`` library, and transformers' options for it."""
    file = open_gguf(path)
    vocabulary = read_vocabulary(file)
    added = added_tokens(vocabulary, end_of_generation_ids(vocabulary))
    backend, add_bos = _backend(vocabulary, added)
    model = vocabulary.text("model") or ""
    defaults = _DEFAULTS.get(model, {})
    options: dict[str, Any] = {
        argument: vocabulary.tokens[number]
        for argument, key in _NAMED_TOKENS.items()
        if (number := vocabulary.token_id(key, defaults.get(argument))) is not None
    }
    ends = [options[name] for name in ("bos_token", "eos_token") if name in options]
    add_eos = vocabulary.flag("add_eos_token", model == "t5")
    options["add_bos_token"] = add_bos and "bos_token" in options
    options["add_eos_token"] = add_eos and "eos_token" in options
    around = [options[f"{end}_token"] for end in ("bos", "eos") if options[f"add_{end}_token"]]
    try:
        # As transformers does it: what stands around a text is a template, in words.
        words = " ".join([f"{token}:0" for token in around] + ["$A"])
        TemplateProcessing(single=words, special_tokens=[(token, 0) for token in around])
    except ValueError as error:  # a name with a space
        raise vocabulary.error(
            "transformers cannot add these tokens to a text",
            "tokens",
            found=", ".join(map(repr, ends)),
            expected="names without spaces",
            hint=_OTHER_TOKENIZER,
        ) from error
    return backend, options | {"chat_template": chat_templates(file, check_template)}


def stop_token_ids(path: str | os.PathLike) -> frozenset[int]:
    """The ids of all stop tokens of the model in the GGUF file at ``path``.

    eos, eot and eom of the file, and the tokens that llama.cpp recognizes as end of generation by
    name; empty if the file has no vocabulary.

    Raises:
        GGUFError: the file is damaged.
    """
    file = open_gguf(path)
    if "tokenizer.ggml.tokens" not in file.metadata:
        return frozenset()
    return end_of_generation_ids(read_vocabulary(file))


def _backend(vocabulary: Vocabulary, added: list[AddedToken]) -> tuple[Tokenizer, bool]:
    """The tokenizer of the ``tokenizers`` library, and whether text begins with bos."""
    model, pre = vocabulary.text("model"), vocabulary.text("pre")
    if model == "llama":
        return sentencepiece(vocabulary, added), vocabulary.flag("add_bos_token", True)
    if model == "gemma4" or model == "gpt2" and pre in RAW_BPE:
        # Files of Gemma 4 turn bos off, but the model needs it.
        add_bos = pre != "sarvam-moe" or vocabulary.flag("add_bos_token", False)
        return raw_bpe(vocabulary, added), add_bos
    if model == "bert":
        return wordpiece(vocabulary, added), False  # it puts a text between its tokens itself
    if model == "t5":
        return unigram(vocabulary, added), vocabulary.flag("add_bos_token", False)
    if model != "gpt2":
        raise vocabulary.error(
            "this type of tokenizer is not supported",
            "model",
            found=model,
            expected="bert, gemma4, gpt2, llama or t5",
            hint=_OTHER_TOKENIZER,
        )
    if pre is None:
        logger.warning(
            "%s does not name its pre-tokenizer (tokenizer.ggml.pre): using the default. "
            "Answers may be worse: convert the model again.",
            vocabulary.file.files[0],
        )
        pre = "default"
    if pre not in PRE_TOKENIZERS:
        raise vocabulary.error(
            "unknown pre-tokenizer",
            "pre",
            found=pre,
            expected=f"one of {', '.join(sorted((*PRE_TOKENIZERS, *RAW_BPE)))}",
            hint=_OTHER_TOKENIZER,
        )
    rule = PRE_TOKENIZERS[pre]
    add_bos = vocabulary.flag("add_bos_token", rule.add_bos)
    return byte_level_bpe(vocabulary, rule, added), add_bos
