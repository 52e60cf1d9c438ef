"""The half of :mod:`resolver` that runs in a forked process."""

from __future__ import annotations

from multiprocessing.connection import Client

_FIELDS = (
    *("model_path", "tokenizer_path", "load_format", "quantization", "context_length"),
    *("disable_overlap_schedule", "served_model_name"),
    *(f"speculative_draft_{name}" for name in ("model_path", "model_quantization", "load_format")),
)


def serve(address: str) -> None:
    """Answer until the other side hangs up."""
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import prepare_server_args

    from ascend_gguf.srt.arg_groups.unsupported_options import error_in_one_line

    connection = Client(address, family="AF_UNIX")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            server_args = prepare_server_args(arguments)
            server_args.resolve_once()
            server_args.check_server_args()
            found = resolving_view(server_args)
            reply = ("", "", {name: getattr(found, name) for name in _FIELDS})
        except BaseException as error:
            error = error_in_one_line(error) or error  # as the command's last line says it
            reply = (type(error).__name__, str(error), {})
        connection.send(reply)
