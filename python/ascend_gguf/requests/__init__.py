"""What a request may ask for: checked before it reaches the scheduler.

A value that the engine does not check itself can end the server for everybody: it becomes an index,
a whole number of 32 bits, or a search that never ends.  Nothing here knows the engine; the patch
calls it for each request (:mod:`ascend_gguf.srt.managers.tokenizer_manager`).
"""

from ascend_gguf.requests.bodies import check_body
from ascend_gguf.requests.checks import Limits, check_prompt, check_request
from ascend_gguf.requests.values import RequestError

__all__ = ["Limits", "RequestError", "check_body", "check_prompt", "check_request"]
