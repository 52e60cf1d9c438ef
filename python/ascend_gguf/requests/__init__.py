"""Limits of requests, checked before a request reaches the scheduler.

A value that the engine does not check can end the server for everybody: it becomes an index, a
32-bit integer, or a search that never ends.  Nothing here knows the engine; the plugin calls it for
each request (:mod:`ascend_gguf.srt.managers.tokenizer_manager`).
"""

from ascend_gguf.requests.bodies import check_body
from ascend_gguf.requests.checks import Limits, check_prompt, check_request
from ascend_gguf.requests.values import RequestError

__all__ = ["Limits", "RequestError", "check_body", "check_prompt", "check_request"]
