"""Requests that clients send: what is refused, by which field, and what is answered.

Most of the first ended or froze a server that did not check them.
"""

from __future__ import annotations

import json
from typing import Any

Request = tuple[str, Any]


def complete(**fields: Any) -> Request:
    body = {"model": "m", "prompt": "one two", "max_tokens": 4, "temperature": 0}
    return "/v1/completions", body | fields


def chat(**fields: Any) -> Request:
    messages = [{"role": "user", "content": "one"}]
    body = {"model": "m", "messages": messages, "max_tokens": 4, "temperature": 0}
    return "/v1/chat/completions", body | fields


def generate(sampling: dict | None = None, **fields: Any) -> Request:
    sampling = {"max_new_tokens": 4, "temperature": 0} | (sampling or {})
    return "/generate", {"text": "one two", "sampling_params": sampling} | fields


def tokens(ids: Any, sampling: dict | None = None, **fields: Any) -> Request:
    return generate(sampling, text=None, input_ids=ids, **fields)


def ollama(**options: Any) -> Request:
    body = {"model": "m", "prompt": "one", "stream": False}
    return "/api/generate", body | {"options": {"num_predict": 4, "temperature": 0} | options}


def vertex(**parameters: Any) -> Request:
    return "/vertex_generate", {"instances": [{"text": "one"}], "parameters": parameters}


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def refused(vocab: int) -> dict[str, list[Request]]:
    """Requests to refuse with status 400, by the text that the answer holds: their field."""
    every = [str(token) for token in range(vocab)]
    warm = {"temperature": 1}
    logprobs = {"return_logprob": True}
    return {
        "logit_bias": [
            complete(logit_bias={"5": 1e39}, temperature=1),
            complete(logit_bias={"5": 3.4e38, "6": 3.4e38}, temperature=0.5),
            complete(logit_bias=dict.fromkeys(every, -1e39), temperature=1),
            chat(logit_bias={"5": 1e39}, temperature=1),
            generate({"logit_bias": dict.fromkeys(every, -3e38), "temperature": 0.1}),
            *(generate({"logit_bias": {key: 1}}) for key in ("x", str(vocab), "-1", str(2**70))),
        ],
        "input_ids": [
            *(tokens([i]) for i in (vocab, 2**31 - 1, 2**40, -1, -vocab - 1)),
            *(tokens(ids) for ids in ([[]], [[1, 2], [vocab + 5]], [[1], []])),
            complete(prompt=[vocab + 88, 1]),
            complete(prompt=[[1], [vocab + 9]]),
            ("/v1/score", {"model": "m", "query": [vocab], "items": [[1]], "label_token_ids": [1]}),
            ("/vertex_generate", {"instances": [{"input_ids": [vocab]}], "parameters": {}}),
        ],
        "top_k": [
            *(generate({"top_k": k, **warm}) for k in (2**40, 2**31, -2, 0)),
            complete(top_k=2**40, temperature=1),
        ],
        "top_p": [generate({"top_p": p, **warm}) for p in (0, -1.0, 2.0)],
        "min_p": [generate({"min_p": p, **warm}) for p in (-1, 2)],
        "temperature": [generate({"temperature": t}) for t in (-1, 1e39, 1e300, 2**70)],
        "repetition_penalty": [
            generate({"repetition_penalty": p, **warm}) for p in (0, -1, 1e-39, 1e-60, 3)
        ],
        "frequency_penalty": [generate({"frequency_penalty": 1e39})],
        "presence_penalty": [chat(presence_penalty=-3)],
        "top_logprobs_num": [
            complete(logprobs=10**9),
            complete(logprobs=vocab + 1),
            complete(logprobs=vocab + 1, echo=True),
            chat(logprobs=True, top_logprobs=10**9),
            *(generate(**logprobs, top_logprobs_num=n) for n in (-1, 10**9, [1])),
        ],
        "logprob_start_len": [
            *(generate(**logprobs, logprob_start_len=n) for n in (-5, -2, 999, [0])),
            generate(logprob_start_len=-7),
        ],
        "token_ids_logprob": [
            *(generate(**logprobs, token_ids_logprob=ids) for ids in ([vocab], [-1], [[1]])),
            tokens(
                [7] * 1000,
                {"max_new_tokens": 1},
                **logprobs,
                token_ids_logprob=[*range(vocab)] * 3,
                logprob_start_len=0,
            ),
        ],
        "vocabulary": [  # the engine's own words
            ("/v1/score", {"model": "m", "query": "a", "items": ["b"], "label_token_ids": [vocab]})
        ],
        "n:": [
            complete(n=100000),
            chat(n=100000),
            *(generate({"n": n}) for n in (0, -3, 129, 10**6)),
            generate(text=["a"] * 1000, sampling_params={"n": 3}),
        ],
        "sampling_params": [
            generate(sampling_params=[{"n": 1}]),
            generate(sampling_params=[]),
            generate(text=["a", "b"], sampling_params=[{"n": 1}]),
        ],
        "stop_regex": [
            *(
                generate({"stop_regex": pattern, "max_new_tokens": 60})
                for pattern in (
                    *("((((.*)*)*)*)*$x", "(.+)+\\x01", "(.|.)*\\x01", ".*.*.*.*.*\\x01"),
                    *("(.?.?){60}\\x01", "(", "a{99999999999}", "(?<=a*)b", "", "a" * 300),
                )
            ),
            complete(stop_regex="(.+)+\\x01"),
        ],
        "stop:": [
            *(generate({"stop": stop}) for stop in ("", [""], "ab" * 100000, ["a"] * 33)),
            chat(stop=["ab" * 10000]),
        ],
        "stop_token_ids": [
            *(generate({"stop_token_ids": [i], "min_new_tokens": 2}) for i in (vocab + 3, -5)),
            chat(stop_token_ids=[vocab + 1], min_tokens=2),
        ],
        "min_new_tokens": [generate({"min_new_tokens": n}) for n in (-1, 9)],
        "max_new_tokens": [generate({"max_new_tokens": n}) for n in (-1, 2**40)],
        "regex": [
            *(
                generate({"regex": pattern})
                for pattern in (
                    *("(", "a" * 200000, "a?" * 300, "([^a]{0,300}){0,300}", "([^a]*){0,1000}"),
                    "|".join("a" * i for i in range(1, 500)),
                )
            ),
            chat(regex="a?" * 2000),
        ],
        "json_schema": [
            *(generate({"json_schema": s}) for s in ("{", _nested(3000), _nested(101))),
            generate({"json_schema": json.dumps({"enum": [str(i) * 20 for i in range(20000)]})}),
            complete(json_schema="{"),
        ],
        "pattern": [generate({"json_schema": json.dumps({"pattern": "a?" * 300})})],
        "ebnf": [
            generate({"ebnf": "x"}),
            generate({"ebnf": 'root ::= ([^a]{0,300}){0,300} "a"'}),
            generate({"ebnf": "root ::= " + "[a-z]? " * 300}),
            generate({"ebnf": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000}),
        ],
        "session": [
            generate(session_params={"foo": 1}),
            generate(session_params={"id": 5}),
            generate(session_params={"id": "nope"}),
        ],
        "LoRA": [generate(lora_path="x"), chat(lora_path="nope")],
        "custom": [generate(custom_logit_processor="garbage")],
        "input_embeds": [
            generate(text=None, input_embeds=embeds) for embeds in ([[0.1] * 3], [[]], [[1, 2]])
        ],
        "positional_embed_overrides": [
            generate(positional_embed_overrides=odd) for odd in ({"a": 1}, [1], "x", [], [None])
        ],
        "tokens": [
            (path, {"model": "m", "tokens": ids})
            for path in ("/v1/detokenize", "/detokenize")
            for ids in ([-1], [vocab], [[1], [2**40]], [1, [2]])
        ],
        "tool_call_parser": [
            ("/parse_function_call", {"text": "a", "tools": []} | parser)
            for parser in ({}, {"tool_call_parser": "nope"})
        ],
        "reasoning_parser": [
            ("/separate_reasoning", {"text": "a", "reasoning_parser": name}) for name in ("", "x")
        ],
        "log_requests_level": [("/configure_logging", {"log_requests_level": 9})],
        "log_level": [("/configure_logging", {"log_level": "nope"})],
        # This route hands on what it gets, of any type.
        "extra_key": [vertex(extra_key=5), vertex(cache_salt=["a"], extra_key={})],
        "routing_key": [vertex(routing_key=7)],
        "bogus": [vertex(bogus=1)],
        "received_time": [vertex(received_time="x"), vertex(received_time=[1])],
        "parameters": [vertex(text="a")],
        "bootstrap_port": [generate(bootstrap_port=[None])],
        "return_sampling_mask": [generate(return_sampling_mask=[])],
        "lora_id": [generate(lora_id=["a"])],
        "response_format": [chat(response_format=odd) for odd in (1, "x", [])],
        "chat_template_kwargs": [
            *(chat(chat_template_kwargs={name: 1}) for name in ("tools", "tokenize", "messages")),
            chat(chat_template_kwargs=[1]),
        ],
        "body": [("/v1/chat/completions", [1]), ("/v1/completions", "x")],
        "text": [generate(text=""), generate(text=[]), generate(text=["a", ""])],
        "long": [tokens([7] * 100000), generate(text="ab " * 100000)],
        "multi_item_delimiter_indices": [tokens([1, 2, 3], multi_item_delimiter_indices=[0, 99])],
        "token_indices_to_pool": [tokens([1, 2, 3], token_indices_to_pool=[i]) for i in (-99, 1)],
        "empty": [complete(prompt=""), complete(prompt=[]), complete(prompt=[[]])],
        "rid": [generate(rid="x" * 1000)],
        "request IDs": [generate(text=["a", "b"], rid=["x", "x"])],
    }


def answered(vocab: int) -> list[Request]:
    """Odd requests that are served."""
    warm = {"temperature": 1}
    return [
        generate({"top_k": vocab + 5, **warm}),
        generate({"top_p": 1e-50, **warm}),
        generate({"min_p": 1, **warm}),
        generate({"temperature": 1e-45}),
        generate({"temperature": 1e6}),
        generate({"logit_bias": {"5": 1e30, "6": 1e30}, "temperature": 1e-5}),
        generate({"logit_bias": dict.fromkeys(map(str, range(vocab)), -1e30), **warm}),
        generate({"n": 3, **warm}, return_logprob=True, top_logprobs_num=2),
        generate({"stop_regex": "\\d+\\."}),
        generate({"stop_regex": "(yes|no)+"}),
        generate({"stop": ["###", "\n\n"]}),
        generate({"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0),
        generate({"regex": "a{1000000}"}),
        generate({"regex": "[a-z]{1,5000}"}),
        generate({"json_schema": json.dumps({"type": "string", "minLength": 10**6})}),
        generate({"ebnf": 'root ::= s\ns ::= s s | "a" | ""'}),
        generate(return_logprob=True, top_logprobs_num=min(vocab, 1024), logprob_start_len=0),
        generate(return_logprob=True, token_ids_logprob=[1, vocab - 1]),
        complete(prompt=["a", "b"], n=3, logprobs=2),
        complete(echo=True, logprobs=3, prompt=[1, 2, 3]),
        chat(logprobs=True, top_logprobs=3),
        chat(n=2, seed=2**40),
        ollama(seed=7, num_predict=3),
        ("/abort_request", {"rid": ""}),
        ("/abort_request", {"rid": "nope"}),
    ]


#: What any client may ask of a server, and no server may die of; an answer of any status will do.
OPERATIONS: list[Request] = [
    ("/slow_down", {"forward_sleep_time": 3600}),
    generate(),
    ("/slow_down", {"forward_sleep_time": None}),
    ("/start_profile", {"output_dir": "/proc/nope", "num_steps": 1}),
    generate(),
    ("/start_profile", {"activities": ["MEM"]}),
    ("/start_profile", {"activities": ["RPD"]}),
    ("/start_profile", {"profile_by_stage": True, "num_steps": 1, "output_dir": "/proc/nope"}),
    generate(),
    ("/stop_profile", {}),
    ("/start_profile", {"output_dir": "/proc/nope"}),
    generate(),
    ("/stop_profile", {}),
    ("/start_expert_distribution_record", {}),
    ("/dump_expert_distribution_record", {}),
    ("/end_weight_update", {}),
    ("/send_weights_to_remote_instance", {"master_address": "x", "ports": "1"}),
    ("/get_weights_by_name", {"name": "nope"}),
    ("/open_session", {"capacity_of_str_len": -10, "session_id": "s"}),
    generate(session_params={"id": "s", "rid": "nope"}),
    ("/close_session", {"session_id": "s"}),
]
