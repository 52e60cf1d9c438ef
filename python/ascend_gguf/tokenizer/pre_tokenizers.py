"""Pre-tokenizers of byte-level BPE, by the name in ``tokenizer.ggml.pre``.

The names, and which of them share a rule, are llama.cpp's (``llama_vocab::impl::load``).  The
regular expressions are those of the models' own tokenizer.json or code; the ``tokenizers`` library
runs them unchanged, where llama.cpp approximates some.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """A rule for splitting text into words.

    Args:
        patterns: each splits the parts that the previous one left, into its matches and the rest.
        ignore_merges: a word in the vocabulary is one token, whatever the merges would give.
        add_bos: text starts with the bos token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s+(?!\S)|\s+"
_LINES = r"\s*[\r\n]+|" + _SPACE

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _words(digits: str, endings: str = _ENDINGS + "|") -> str:
    """The rule of Llama 3 and Qwen2, which differ in the digits per word."""
    return endings + r"[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _LINES


def _cased_words(
    digits: str, endings: str, letters: str = "", symbols_end: str = r"[\r\n/]*"
) -> str:
    """The rule of GPT-4o: a capital starts a word.  ``letters`` narrows the letter classes."""
    upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + letters + "]"
    lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}" + letters + "]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{start}{upper}*{lower}+{endings}|{start}{upper}+{lower}*{endings}|{digits}|"
        r" ?[^\s\p{L}\p{N}]+" + symbols_end + "|" + _LINES
    )


# DeepSeek's tokenizers: letters of scripts with capitals, as of an older Unicode.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK_AND_KOREAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SIGN = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_WORDS = _ASCII_SIGN + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_DEEPSEEK_3 = (r"\p{N}{1,3}", _CJK_AND_KANA, _DEEPSEEK_WORDS + r"[\r\n]*|" + _LINES)

# Digits in threes from the right: 1234567 is 1, 234, 567.  The models' own expressions look at all
# digits that follow, at each of them, which takes the square of the length.  These look once, where
# the number starts.
_FIRST_DIGITS = r"(?<!\d)\d{1,2}(?=(?:\d{3})+(?!\d))"
_BEFORE_FIRST_THREE = r"(?:(?<!\d)|(?<=\d)(?<!\d\d)|(?<=\d\d)(?<!\d\d\d))(?=(?:\d{3})+(?!\d))"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _of(names: str, *patterns: str, **options: bool) -> dict[str, PreTokenizer]:
    """The rule of several names."""
    return dict.fromkeys(names.split(), PreTokenizer(patterns, **options))


#: ``tokenizer.ggml.pre`` to its rule.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_of("default", r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **_of(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
        "jina-v1-en jina-v2-code roberta-bpe mpt olmo jais exaone4 trillion granite-docling",
        _GPT2,
    ),
    **_of("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", r"\p{N}", _GPT2),
    **_of("falcon", r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    **_of(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _words(r"\p{N}{1,3}"),
        ignore_merges=True,
        add_bos=True,
    ),
    **_of("dbrx smaug-bpe chatglm-bpe", _words(r"\p{N}{1,3}")),
    **_of("glm4 glm5", _words(r"\p{N}{1,3}"), ignore_merges=True),
    **_of("minicpm5", r"\p{N}{1,3}", _words(r"\p{N}+"), ignore_merges=True),
    **_of(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        _words(r"\p{N}"),
    ),
    **_of("ufakzeka", _words(r"\p{N}", endings="")),
    **_of("laguna", r"[^\n]+|\n+", _words(r"\p{N}")),
    **_of(
        "qwen35",
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _LINES,
    ),
    **_of(
        "seed-coder",
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|"
        r" ?[^\s\p{L}\p{N}\r\n]+|" + _LINES,
    ),
    **_of(
        "bailingmoe bailingmoe2 llada-moe",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACE,
    ),
    **_of(
        "exaone-moe",
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|" + _SPACE,
    ),
    **_of(
        "jais-2",
        _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|"
        + "".join(rf"\s{{{2**power}}}(?!\S)|" for power in range(9, 1, -1))
        + r"\s{1,2}(?!\S)|\s{1}",
    ),
    **_of("tekken", _cased_words(r"\p{N}", ""), ignore_merges=True, add_bos=True),
    **_of("gpt-4o llama4 kanana2 talkie minimax-m2", _cased_words(r"\p{N}{1,3}", _ENDINGS + "?")),
    **_of(
        "granite-embed-multi-97m", _cased_words(r"\p{N}{1,3}", _ENDINGS + "?"), ignore_merges=True
    ),
    **_of(
        "tiny_aya cohere2moe",
        r"(?<!\d)\d++(?!\w)",
        r"\A\d{1,2}(?=(?:\d{3})+\z)",
        _cased_words(r"\p{N}{1,3}", _ENDINGS + "?"),
    ),
    **_of(
        "youtu",
        "[\uac00-\ud7a3\u3131-\u318e]+|"
        "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK_AND_KANA,
        _cased_words(r"\p{N}", _ENDINGS + "?"),
        ignore_merges=True,
    ),
    **_of(
        "kimi-k2",
        r"\p{Han}+|"
        + _cased_words(
            r"\p{N}{1,3}", _ENDINGS + "?", letters=r"&&[^\p{Han}]", symbols_end=r"[\r\n]*"
        ),
    ),
    **_of(
        "deepseek-llm",
        "[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"(?<!\s)\s+$",
        _CJK_AND_KOREAN,
        r"\p{N}+",
    ),
    **_of("deepseek-coder", "[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_KOREAN, r"\p{N}"),
    **_of("deepseek-v3 hunyuan-dense joyai-llm hy_v4", *_DEEPSEEK_3),
    **_of(
        "spark2_5", r"\p{N}{1,3}", _CJK_AND_KANA, _DEEPSEEK_WORDS + r"|[\r\n]|" + _SPACE, r"\p{N}"
    ),
    **_of(
        "afmoe",
        _FIRST_DIGITS,
        r"\d{1,3}",
        "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
        "\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
        "\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        _DEEPSEEK_3[-1],
    ),
    **_of("poro-chat bloom gpt3-finnish", _BLOOM),
    **_of("viking", _BLOOM, r"\p{N}"),
    **_of("superbpe", r"\p{N}+", _BEFORE_FIRST_THREE, r"\G\d{3}(?=\d{3})"),
    **_of(
        "chameleon",
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
        add_bos=True,
    ),
}
