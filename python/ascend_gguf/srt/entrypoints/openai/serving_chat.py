"""Chat messages: no image is dropped silently, and a base model says that it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascend_gguf.requests import RequestError

#: Kinds of content that a text model does not take, by a part of their names.
_MEDIA = ("image", "video", "audio")


def _process_messages(
    original: Callable, self: Any, request: Any, is_multimodal: bool, **options: Any
) -> Any:
    """Overrides ``OpenAIServingChat._process_messages``: refuse what a text model would not see.

    The engine drops images where a chat template renders text only.

    Raises:
        RequestError: names the kind of content, or says that there is no template; HTTP status 400.
    """
    if not _has_template(self, request):
        raise RequestError(
            "messages",
            "a chat",
            "a prompt to /v1/completions; or start the server with --chat-template FILE.jinja",
            "this is a base model: its file has no chat template",
        )
    if not is_multimodal:
        for message in request.messages:
            content = getattr(message, "content", None)
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
                if any(word in str(kind) for word in _MEDIA):
                    raise RequestError("messages", kind, "text", "this is a text model")
    return original(self, request, is_multimodal, **options)


def _has_template(self: Any, request: Any) -> bool:
    """Whether something makes a prompt of messages."""
    manager, tokenizer = self.template_manager, self.tokenizer_manager.tokenizer
    return bool(
        manager.chat_template_name
        or getattr(manager, "python_chat_template", None)
        or getattr(self, "chat_encoding_spec", None)
        or getattr(tokenizer, "chat_template", None)
        or "chat_template" in (getattr(request, "chat_template_kwargs", None) or {})
        or "chat_template" in (getattr(self, "default_chat_template_kwargs", None) or {})
    )
