"""The values that each field of a request may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from ascend_gguf.requests.grammars import check_grammar
from ascend_gguf.requests.patterns import check_pattern
from ascend_gguf.requests.values import (
    INT32,
    RequestError,
    flag,
    number,
    text,
    token_ids,
    whole_number,
)

#: Answers to one prompt, and to all prompts of one HTTP request: other requests wait for them.
MOST_ANSWERS, MOST_AT_ONCE = 128, 2048

#: Top log-probabilities per position, and log-probabilities per prompt.
MOST_TOP_LOGPROBS, MOST_PROMPT_LOGPROBS = 1024, 2**20

#: Stop strings; the same length of the answer's tail is decoded in each step.
MOST_STOPS, LONGEST_STOP = 32, 1024

#: Biases are added in float32 and divided by the temperature.
GREATEST_BIAS = 1e30

#: Set by the engine: a request with these fields would skip its checks.
_INTERNAL = (
    *("is_normalized", "stop_strs", "stop_regex_strs"),
    *("stop_str_max_len", "stop_regex_max_len"),
)


@dataclass(frozen=True)
class Limits:
    """What a served model allows.

    Args:
        vocab_size: rows of its embedding.
        hidden_size: width of a row.
        answers: most answers to one request, if there is a limit.
        characters: most characters of a prompt, if there is a limit.
        shares_prefixes: whether the prefix cache is on.
    """

    vocab_size: int
    hidden_size: int
    answers: int | None = None
    characters: int | None = None
    shares_prefixes: bool = False


def check_request(request: Any, limits: Limits) -> None:
    """Check a request as received, and convert integral floats such as 4.0.

    Args:
        request: the engine's ``GenerateReqInput`` or ``EmbeddingReqInput``, of one prompt or many.

    Raises:
        RequestError: a value that the engine cannot serve.
    """
    prompts = _count_prompts(request, limits)
    if request.sampling_params is not None:
        _each(request, "sampling_params", partial(_checked_sampling, limits=limits), prompts)
    for field, check in _FIELDS.items():
        if getattr(request, field, None) is not None:
            _each(request, field, partial(check, field), prompts)
    _check_ids_of_logprobs(getattr(request, "token_ids_logprob", None), limits, prompts)
    _check_number_of_answers(request, limits, prompts or 1)
    _check_session(getattr(request, "session_params", None))
    lists = 0 if prompts is None else 1
    for field, depth in (("positional_embed_overrides", lists), ("embed_overrides", lists + 1)):
        _check_overrides(field, getattr(request, field, None), depth)


def check_prompt(request: Any, input_ids: Sequence[int] | None, limits: Limits) -> None:
    """Check what depends on the prompt's tokens.

    Args:
        request: one prompt's ``GenerateReqInput`` or ``EmbeddingReqInput``.
        input_ids: its tokens.

    Raises:
        RequestError: a token outside the vocabulary, or a position outside the prompt.
    """
    length = len(input_ids if input_ids is not None else request.input_embeds or ())
    if not length and not getattr(request, "session_params", None):
        raise RequestError("text", "", "at least one token", "an empty prompt")
    if input_ids and not 0 <= min(input_ids) <= max(input_ids) < limits.vocab_size:
        token_ids("input_ids", input_ids, limits.vocab_size)
    for field in ("multi_item_delimiter_indices", "token_indices_to_pool"):
        for place in getattr(request, field, None) or ():
            whole_number(field, place, 0, length - 1)
            if limits.shares_prefixes:
                allowed = "positions, with --disable-radix-cache"
                raise RequestError(field, place, allowed, "the prefix may come from the cache")
    if getattr(request, "return_logprob", False):
        most = min(MOST_TOP_LOGPROBS, limits.vocab_size)
        whole_number("top_logprobs_num", request.top_logprobs_num or 0, 0, most)
        _check_prompt_logprobs(request, length)


def _check_prompt_logprobs(request: Any, length: int) -> None:
    first = request.logprob_start_len
    # Without a start and with ids, the engine starts at the first token.
    first = (0 if request.token_ids_logprob else length) if first == -1 else first
    if first > length:
        raise RequestError("logprob_start_len", first, f"whole numbers from -1 to {length}")
    for field, width in (
        ("top_logprobs_num", request.top_logprobs_num or 0),
        ("token_ids_logprob", len(request.token_ids_logprob or ())),
    ):
        if (length - first) * width > MOST_PROMPT_LOGPROBS:
            raise RequestError(
                field,
                width,
                f"{MOST_PROMPT_LOGPROBS} log-probabilities per prompt; set logprob_start_len",
                f"too many for {length - first} tokens of the prompt",
            )


def _each(request: Any, field: str, check: Callable, prompts: int | None) -> None:
    """Check a value, or each of a list; ``check`` returns the value to use."""
    value = getattr(request, field)
    if isinstance(value, list):
        _check_length(field, value, prompts)
        value = [None if item is None else check(item) for item in value]
    else:
        value = check(value)
    setattr(request, field, value)


def _check_length(field: str, values: list, prompts: int | None) -> None:
    if prompts is None:
        raise RequestError(field, values, "one value", "a list, and there is one prompt")
    if len(values) != prompts:
        raise RequestError(field, values, f"one value for each of {prompts} prompts")


def _count_prompts(request: Any, limits: Limits) -> int | None:
    """The number of prompts in a list; None for a prompt that is not in a list."""
    if request.text is not None:
        if request.input_ids is not None:
            raise RequestError("input_ids", request.input_ids, "no input_ids beside text")
        if isinstance(request.text, str):
            text("text", request.text, limits.characters)
            return None
        return _check_texts(request, limits)
    if request.input_ids is not None:
        return _check_input_ids(request.input_ids, limits)
    if getattr(request, "input_embeds", None) is not None:
        return _check_input_embeds(request.input_embeds, limits)
    return None


def _check_texts(request: Any, limits: Limits) -> int:
    pairs = getattr(request, "is_cross_encoder_request", False)
    if not isinstance(request.text, list) or not request.text:
        raise RequestError("text", request.text, "a string, or a list of at least one")
    for part in request.text:
        for string in part if pairs and isinstance(part, list) else [part]:
            text("text", string, limits.characters)
    return len(request.text)


def _check_number_of_answers(request: Any, limits: Limits, prompts: int) -> None:
    sampling = request.sampling_params
    first = sampling[0] if isinstance(sampling, list) else sampling
    answers = prompts * ((first or {}).get("n") or 1)
    if limits.answers is not None and answers > limits.answers:
        allowed = f"{limits.answers} answers to a request"
        raise RequestError("prompts and n", answers, allowed, "too many at once")


def _check_input_ids(ids: Any, limits: Limits) -> int | None:
    if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
        raise RequestError("input_ids", ids, "a list of token ids, or a list of such lists")
    if not any(isinstance(item, Sequence) for item in ids):
        token_ids("input_ids", ids, limits.vocab_size)
        return None
    for prompt in ids:
        token_ids("input_ids", prompt, limits.vocab_size)
        if not len(prompt):
            raise RequestError("input_ids", prompt, "at least one token", "empty")
    return len(ids)


def _check_input_embeds(embeds: Any, limits: Limits) -> int | None:
    shape = f"rows of {limits.hidden_size} finite numbers, or a list of such lists"

    def depth(value: Any) -> int:
        return 1 + depth(value[0]) if isinstance(value, (list, tuple)) and value else 0

    if depth(embeds) not in (2, 3):
        raise RequestError("input_embeds", embeds, shape)
    prompts = embeds if depth(embeds) == 3 else [embeds]
    for prompt in prompts:
        for row in prompt:
            if not isinstance(row, Sequence) or len(row) != limits.hidden_size:
                raise RequestError("input_embeds", row, shape)
            for value in row:
                number("input_embeds", value, -3e38, 3e38)
    return len(prompts) if depth(embeds) == 3 else None


def _check_ids_of_logprobs(ids: Any, limits: Limits, prompts: int | None) -> None:
    if not ids:
        return
    ids = ids if isinstance(ids, list) else [ids]
    lists = [ids]
    if any(isinstance(item, list) for item in ids):
        _check_length("token_ids_logprob", ids, prompts)
        lists = [item for item in ids if item is not None]
    for item in lists:
        token_ids("token_ids_logprob", item, limits.vocab_size)


def _check_session(session: Any) -> None:
    kinds: dict[str, Callable[[str, Any], Any]] = {
        "id": text,
        "rid": text,
        "offset": partial(whole_number, low=-INT32, high=INT32),
        "replace": flag,
        "drop_previous_output": flag,
    }
    if session is None:
        return
    if not isinstance(session, Mapping):
        raise RequestError("session_params", session, "an object")
    for name, value in session.items():
        if name not in kinds:
            raise RequestError("session_params", name, ", ".join(kinds), "no such field")
        if value is not None:
            kinds[name](f"session_params.{name}", value)


def _check_overrides(field: str, overrides: Any, lists: int) -> None:
    """Objects of the engine's own routes, nested in ``lists`` lists; JSON cannot have them."""
    if isinstance(overrides, list) and lists:
        for item in overrides:
            _check_overrides(field, item, lists - 1)
    elif isinstance(overrides, (list, str, bytes, bool, int, float, Mapping)):
        raise RequestError(field, overrides, "no value in a JSON request")


def _checked_sampling(params: Any, limits: Limits) -> dict[str, Any]:
    """The sampling parameters of one prompt, with integral floats converted."""
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise RequestError("sampling_params", params, "an object")
    checked = dict(params)
    if params.get("n", 1) is None:
        del checked["n"]
    for name in _INTERNAL:
        if name in params:
            raise RequestError("sampling_params", name, "parameters of a request", "no such field")
    for name, check in _SAMPLING.items():
        if params.get(name) is not None:
            checked[name] = check(name, params[name])
    if params.get("logit_bias"):
        checked["logit_bias"] = _checked_bias(params["logit_bias"], limits)
    if params.get("stop_token_ids") is not None:
        token_ids("stop_token_ids", params["stop_token_ids"], limits.vocab_size)
        checked["stop_token_ids"] = list(params["stop_token_ids"])
    return checked


def _checked_bias(bias: Any, limits: Limits) -> dict[str, Real]:
    if not isinstance(bias, Mapping):
        raise RequestError("logit_bias", bias, "an object of token ids and numbers")
    checked = {}
    for key, value in bias.items():
        try:
            token = int(key)
        except (TypeError, ValueError):
            token = -1
        if not 0 <= token < limits.vocab_size:
            allowed = f"token ids from 0 to {limits.vocab_size - 1}"
            raise RequestError("logit_bias", key, allowed, "not a token of this model")
        checked[str(token)] = number("logit_bias", value, -GREATEST_BIAS, GREATEST_BIAS)
    return checked


def _listed(field: str, found: Any) -> list:
    """A string as a list of it, or a list that is not too long."""
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, (list, tuple)) or len(listed) > MOST_STOPS:
        raise RequestError(field, found, f"a string, or a list of at most {MOST_STOPS}")
    return list(listed)


def _checked_stops(field: str, stops: Any) -> list[str]:
    stops = _listed(field, stops)
    for stop in stops:
        if not text(field, stop, LONGEST_STOP):
            raise RequestError(field, stop, f"strings of 1 to {LONGEST_STOP} characters")
    return stops


def _checked_patterns(field: str, patterns: Any) -> Any:
    for pattern in _listed(field, patterns):
        check_pattern(field, pattern)
    return patterns


#: Sampling parameters that do not depend on the model.
_SAMPLING: dict[str, Callable[[str, Any], Any]] = {
    "temperature": partial(number, low=0, high=1e6),
    "top_p": partial(number, low=0, high=1, above=True),
    "min_p": partial(number, low=0, high=1),
    "top_k": partial(whole_number, low=1, high=INT32, also=-1),
    "frequency_penalty": partial(number, low=-2, high=2),
    "presence_penalty": partial(number, low=-2, high=2),
    "repetition_penalty": partial(number, low=1e-3, high=2),
    "n": partial(whole_number, low=1, high=MOST_ANSWERS),
    "beam_width": partial(whole_number, low=1, high=MOST_ANSWERS),
    "max_new_tokens": partial(whole_number, low=0, high=INT32),
    "min_new_tokens": partial(whole_number, low=0, high=INT32),
    "stream_interval": partial(whole_number, low=1, high=INT32),
    "sampling_seed": partial(whole_number, low=-(2**63), high=2**63 - 1),
    "ignore_eos": flag,
    "skip_special_tokens": flag,
    "spaces_between_special_tokens": flag,
    "no_stop_trim": flag,
    "stop": _checked_stops,
    "stop_regex": _checked_patterns,
    "regex": check_grammar,
    "json_schema": check_grammar,
    "ebnf": check_grammar,
    "structural_tag": check_grammar,
}

#: Other fields, each a value or a list of them.
_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "return_logprob": flag,
    "logprob_start_len": partial(whole_number, low=-1, high=INT32),
    "top_logprobs_num": partial(whole_number, low=0, high=INT32),
    "rid": partial(text, longest=512),
    "lora_path": partial(text, longest=4096),
    "priority": partial(whole_number, low=-INT32, high=INT32),
    "bootstrap_room": partial(whole_number, low=0, high=2**63 - 1),
    "routed_experts_start_len": partial(whole_number, low=0, high=INT32),
    "received_time": partial(number, low=0, high=1e18),
    "dimensions": partial(whole_number, low=1, high=INT32),
}
