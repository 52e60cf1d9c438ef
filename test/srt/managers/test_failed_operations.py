"""What the scheduler answers where it cannot do what it is asked to: its reader ends on less."""

from __future__ import annotations

from sglang.srt.managers import io_struct

from ascend_gguf.srt.managers.scheduler import _failed


def test_each_failure_can_be_read():
    names = [
        name
        for name in vars(io_struct)
        if name.endswith(("Req", "ReqInput"))
        and hasattr(io_struct, f"{name.removesuffix('Input')}Output")
    ]
    read = []
    for name in names:
        answer = _failed(type(name, (), {})(), "no")
        assert io_struct.msgpack_decode(io_struct.msgpack_encode(answer)) == answer
        assert getattr(answer, "success", False) is False
        read.append(getattr(answer, "message", None) or getattr(answer, "error_message", None))
    assert len(read) > 25 and read.count("no") > 20


def test_a_session_that_is_not_opened_is_known_by_its_name():
    request = io_struct.OpenSessionReqInput(capacity_of_str_len=1, session_id="mine")
    assert _failed(request, "no").session_id == "mine"
