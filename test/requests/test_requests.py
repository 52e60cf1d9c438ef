"""Which requests are refused, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ascend_gguf.requests import Limits, RequestError, check_body, check_prompt, check_request
from ascend_gguf.requests.grammars import check_grammar
from ascend_gguf.requests.patterns import check_pattern
from ascend_gguf.requests.values import shown

LIMITS = Limits(vocab_size=512, hidden_size=4, answers=100)

NOT_FINITE = (float("nan"), float("inf"), -float("inf"), 10**400)


def _request(**fields: Any) -> SimpleNamespace:
    unset = dict.fromkeys(
        (
            *("text", "input_ids", "input_embeds", "rid", "lora_path", "session_params"),
            *("return_logprob", "logprob_start_len", "top_logprobs_num", "token_ids_logprob"),
        )
    )
    return SimpleNamespace(**unset | {"text": "one two", "sampling_params": {}} | fields)


def _sampled(**sampling: Any) -> dict[str, Any]:
    request = _request(sampling_params=sampling)
    check_request(request, LIMITS)
    return request.sampling_params


@pytest.mark.parametrize(
    "field",
    [
        *("temperature", "top_p", "min_p", "repetition_penalty"),
        *("frequency_penalty", "presence_penalty", "top_k", "n", "max_new_tokens"),
    ],
)
def test_numbers_are_finite_numbers(field):
    for value in (*NOT_FINITE, "1", [1], {}, True):
        with pytest.raises(RequestError, match=rf"^{field}: .*found .*allowed"):
            _sampled(**{field: value})


def test_whole_numbers_may_look_like_others():
    sampling = _sampled(top_k=np.int64(5), max_new_tokens=4.0, temperature=np.float32(0.5), n=None)
    assert sampling["top_k"] == 5 and type(sampling["max_new_tokens"]) is int
    with pytest.raises(RequestError, match="max_new_tokens"):
        _sampled(max_new_tokens=4.5)


def test_biases():
    assert _sampled(logit_bias={5: 1, "07": -1e30})["logit_bias"] == {"5": 1, "7": -1e30}
    for bias in ({"512": 1}, {"x": 1}, {"1": None}, [1], *({"1": v} for v in NOT_FINITE)):
        with pytest.raises(RequestError, match="logit_bias"):
            _sampled(logit_bias=bias)


def test_what_the_engine_works_out_is_no_parameter():
    with pytest.raises(RequestError, match="is_normalized"):
        _sampled(is_normalized=True)


def test_lists_have_an_entry_for_each_prompt():
    two = _request(text=["a", "b"], top_logprobs_num=[1, None], sampling_params=[{}, {"n": 1}])
    check_request(two, LIMITS)
    for field in ("top_logprobs_num", "logprob_start_len", "return_logprob", "sampling_params"):
        for prompt in ("a", ["a", "b", "c"]):
            with pytest.raises(RequestError, match=field):
                check_request(_request(text=prompt, **{field: [0, 1]}), LIMITS)


def test_answers_at_once():
    check_request(_request(text=["a"] * 50, sampling_params={"n": 2}), LIMITS)
    with pytest.raises(RequestError, match="found 102, allowed: 100"):
        check_request(_request(text=["a"] * 51, sampling_params={"n": 2}), LIMITS)
    check_request(_request(text=["a"] * 51, sampling_params={"n": 2}), Limits(512, 4))


def test_prompts():
    for text in (5, [], ["a", 5], "\ud800"):
        with pytest.raises(RequestError, match="text"):
            check_request(_request(text=text), LIMITS)
    for ids in ([512], [-1], [True], ["a"], [[1], [512]], [[]], {}, "ab"):
        with pytest.raises(RequestError, match="input_ids"):
            check_request(_request(text=None, input_ids=ids), LIMITS)
    for rows in ([[0.0] * 3], [[0.0] * 4, [0.0]], [], [[float("nan")] * 4], [[["a"] * 4]]):
        with pytest.raises(RequestError, match="input_embeds"):
            check_request(_request(text=None, input_embeds=rows), LIMITS)
    check_request(_request(text=None, input_embeds=[[[0, 1, 2, 3.0]]]), LIMITS)


def test_what_depends_on_the_tokens():
    with pytest.raises(RequestError, match="empty prompt"):
        check_prompt(_request(), [], LIMITS)
    with pytest.raises(RequestError, match=r"found 700.*from 0 to 511"):
        check_prompt(_request(), [1, 700], LIMITS)
    wide = _request(return_logprob=True, logprob_start_len=0, top_logprobs_num=500)
    check_prompt(wide, [1] * 2000, LIMITS)
    with pytest.raises(RequestError, match="too many for 3000 tokens"):
        check_prompt(wide, [1] * 3000, LIMITS)
    with pytest.raises(RequestError, match="from 0 to 512"):
        check_prompt(_request(return_logprob=True, top_logprobs_num=513), [1], LIMITS)


ENDLESS = [
    "((((.*)*)*)*)*$x",
    "(.+)+x",
    "(.|.)*x",
    "(a|ab)*x",
    ".*.*.*x",
    "(.?.?){60}x",
    "(.*a){9}",
]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_without_bound(pattern):
    with pytest.raises(RequestError, match="may search without end"):
        check_pattern("stop_regex", pattern)


BOUNDED = [
    *(r"\d+\.", r"\n+User\s*:", "(yes|no)+", "(?i)human:|user:", r"(\d{1,3}\.){3}\d{1,3}"),
    *("(a{65535}){65535}", "(a|b){30}", r"(?<=x)y(?!z)", r"(a)?(?(1)b|c)", r"(.)\1"),
]


@pytest.mark.parametrize("pattern", BOUNDED)
def test_patterns_with_bounds(pattern):
    check_pattern("stop_regex", pattern)


def test_long_values_are_cut():
    with pytest.raises(RequestError) as caught:
        _sampled(stop="\x1b" * 100_000)
    assert len(str(caught.value)) < 600 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["([^a]{0,300}){0,300}", "([^a]*){0,1000}", "a?" * 300])
def test_grammars_that_take_minutes(pattern):
    with pytest.raises(RequestError, match="regex"):
        check_grammar("regex", pattern)
    check_grammar("ebnf", 'root ::= "(a?){0,300}{0,300}"')  # a text, no repetitions
    check_grammar("regex", "(a{0,90}){0,90}" + r"\d{4}-\d{2}" + r"\p{L}+")


#: What is wrong with the body of a route, by what the error says.
_BODIES = {
    "body": ("/v1/completions", [1]),
    "tokens: not a token": ("/v1/detokenize", {"tokens": [[1], [100]]}),
    "tokens: invalid": ("/detokenize", {"tokens": [1, [2]]}),
    "parser: invalid value .found None": ("/parse", {}),
    "response_format": ("/v1/chat/completions", {"response_format": 1}),
    "chat_template_kwargs: not for a request .found 'tools'": (
        "/v1/chat/completions",
        {"chat_template_kwargs": {"a": 1, "tools": 2}},
    ),
    "log_level": ("/configure_logging", {"log_level": "loud"}),
    "log_requests_format": ("/configure_logging", {"log_requests_format": 1}),
}


@pytest.mark.parametrize("problem", _BODIES)
def test_bodies(problem):
    path, body = _BODIES[problem]
    with pytest.raises(RequestError, match=problem):
        check_body(path, body, 100, {"/parse": ("parser", ["json"])})


def test_bodies_that_are_served():
    names = {"/parse": ("parser", ["json"])}
    for path, body in (
        ("/v1/detokenize", {"tokens": [0, 99]}),
        ("/v1/detokenize", {"tokens": []}),
        ("/parse", {"parser": "json"}),
        ("/configure_logging", {"log_level": "debug", "log_requests_level": 3}),
        ("/generate", {"tokens": "anything"}),
    ):
        check_body(path, body, 100, names)


def test_what_is_nested_deeply_is_shown():
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    assert "nested deeply" in shown(nested)
