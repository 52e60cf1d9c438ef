"""The counting models' tokenizer: byte-level BPE of 512 tokens, each digit a token of its own."""

from __future__ import annotations

from functools import cache
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from counting.problems import problems

#: ``tokenizer.ggml.pre``: its rule keeps digits apart.
PRE_TOKENIZER = "qwen2"

SIZE = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PADDING, END_OF_TURN = SPECIAL.index("<|endoftext|>"), SPECIAL.index("<|im_end|>")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt(question: str) -> str:
    """What the chat template makes of one question."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@cache
def tokenizer() -> Tokenizer:
    """Merges are learnt from problems of the training kind: the same ones every time."""
    result = Tokenizer(models.BPE())
    words = [
        pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in PRE_TOKENIZERS[PRE_TOKENIZER].patterns
    ]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([*words, to_bytes])
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = (
        (f"user\n{problem.question}", f"assistant\n{problem.answer}")
        for problem in islice(problems(0, held_out=False), 4000)
    )
    texts = (text for chat in chats for text in chat)
    result.train_from_iterator(texts, trainer)
    return result
