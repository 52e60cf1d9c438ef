"""The engine's application in a process that is one of several (``--tokenizer-worker-num``).

uvicorn starts these, and none of them would load plugins.
"""

from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.srt.entrypoints.http_server import app  # noqa: E402

from ascend_gguf.srt.entrypoints.http_server import answer_as_ours  # noqa: E402

answer_as_ours(app)
