"""Run on the simulated NPU: calls through torch.ops, each right or wrong, as JSON: name -> "ok", or
the error's text.
"""

import json

import torch
import torch_npu

from npu_sim.operators.view import int4_of

torch_npu.npu.config.allow_internal_format = True
BF16, I32 = torch.bfloat16, torch.int32
generator = torch.Generator().manual_seed(0)
results = {}


def npu(*shape, dtype=BF16):
    return torch.randn(*shape, generator=generator).to(dtype).npu()


def ints(*rows):
    return torch.tensor(rows, dtype=I32).npu()


def call(name, function):
    try:
        right = function()
        results[name] = "ok" if right is not False else "wrong value"
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"


def close(found, expected, tolerance=2e-2):
    return bool(
        (found.cpu().float() - expected.float()).abs().max()
        <= tolerance * max(1.0, expected.abs().max().item())
    )


def dense():
    x, w = npu(5, 128), torch.randint(-8, 8, (128, 64), dtype=I32, generator=generator)
    packed = torch_npu.npu_convert_weight_to_int4pack(w.npu())
    scale, offset = (
        npu(4, 64).abs() * 0.1,
        torch.randint(-8, 8, (4, 64), generator=generator).to(BF16).npu(),
    )
    expected = x.cpu().float() @ (
        (w + offset.cpu().float().repeat_interleave(32, 0))
        * scale.cpu().float().repeat_interleave(32, 0)
    )

    def multiply(weight=packed, s=scale, o=offset, **more):
        return torch_npu.npu_weight_quant_batchmatmul(
            x, weight, s, o, antiquant_group_size=32, **more
        )

    call("pack", lambda: bool((int4_of(packed.cpu()) == w).all()))
    call("pack values", lambda: torch_npu.npu_convert_weight_to_int4pack((w * 4).npu()))
    call("pack 3-D", lambda: torch_npu.npu_convert_weight_to_int4pack(w.npu()[None]))
    call("dense", lambda: close(multiply(), expected))
    turned = torch_npu.npu_convert_weight_to_int4pack(w.t().contiguous().npu()).t()
    call(
        "dense transposed",
        lambda: close(
            multiply(turned, scale.t().contiguous().t(), offset.t().contiguous().t()), expected
        ),
    )
    call("dense scale beside transposed", lambda: multiply(turned))
    call("dense scale float32", lambda: multiply(s=scale.float()))
    call("dense bias", lambda: multiply(bias=npu(64)))


def grouped():
    experts, k, n, counts = 3, 64, 64, [2, 0, 5]
    x, w = npu(7, k), torch.randint(-8, 8, (experts, k, n), dtype=I32, generator=generator)
    packed = torch_npu.npu_convert_weight_to_int4pack(w.view(-1, n).npu()).view(experts, k, n // 8)
    scale, zero = npu(experts, 2, n).abs() * 0.1, torch.zeros(experts, 2, n, dtype=BF16).npu()
    ends = torch.tensor(counts).cumsum(0).npu()
    values = w.float() * scale.cpu().float().repeat_interleave(32, 1)
    expected = torch.cat(
        [a @ b for a, b in zip(x.cpu().float().split(counts), values, strict=False)]
    )

    def multiply(weight=packed, group_list=ends, **more):
        return torch.ops.npu.npu_grouped_matmul(
            [x], [weight], group_list=group_list, split_item=2, group_type=0, **more
        )[0]

    call(
        "grouped int4",
        lambda: close(multiply(antiquant_scale=[scale], antiquant_offset=[zero]), expected),
    )
    call("grouped no offset", lambda: multiply(antiquant_scale=[scale], antiquant_offset=[]))
    call(
        "grouped too many rows",
        lambda: multiply(antiquant_scale=[scale], antiquant_offset=[zero], group_list=ends + 1),
    )
    plain = npu(experts, n, k)
    expected = torch.cat(
        [
            a @ b.t()
            for a, b in zip(x.cpu().float().split(counts), plain.cpu().float(), strict=False)
        ]
    )
    call("grouped plain", lambda: close(multiply(plain.transpose(1, 2)), expected))
    stored = torch_npu.npu_format_cast(plain, 29)
    call(
        "grouped FRACTAL_NZ",
        lambda: (
            torch_npu.get_npu_format(stored) == torch_npu.Format.FRACTAL_NZ
            and close(multiply(stored.transpose(1, 2)), expected)
        ),
    )
    call("cast unaligned", lambda: torch_npu.npu_format_cast(npu(24, 40), 29))


def attention():
    keys, values = torch.zeros(2, 4, 128, 2, 16, dtype=BF16).npu().unbind(0)
    k, v = npu(130, 2, 16), npu(130, 2, 16)
    slots = torch.cat((torch.arange(256, 384), torch.arange(0, 2))).to(I32).npu()
    table = ints([2, 0])
    call(
        "store",
        lambda: torch_npu._npu_reshape_and_cache(
            key=k, value=v, key_cache=keys, value_cache=values, slot_indices=slots
        ),
    )
    call(
        "store out of the cache",
        lambda: torch_npu._npu_reshape_and_cache(
            key=k, value=v, key_cache=keys, value_cache=values, slot_indices=slots + 256
        ),
    )
    q = npu(2, 4, 16)
    kk, vv = (t.cpu().float().transpose(0, 1).repeat_interleave(2, 0) for t in (k, v))
    hidden = torch.ones(2, 130, dtype=torch.bool).triu(129)
    expected = (
        (q.cpu().float().transpose(0, 1) @ kk.transpose(1, 2) / 4)
        .masked_fill(hidden, -torch.inf)
        .softmax(-1)
        @ vv
    ).transpose(0, 1)
    lengths = torch.tensor([130], dtype=I32)

    def prefill(context=lengths):
        out = torch.empty(2, 64, dtype=BF16).npu()
        torch_npu._npu_flash_attention_qlens(
            query=q.flatten(1),
            key_cache=keys,
            value_cache=values,
            mask=torch.ones(128, 128).triu(1).to(BF16).npu(),
            block_table=table,
            seq_len=torch.tensor([2], dtype=I32),
            context_lens=context,
            scale_value=0.25,
            num_heads=4,
            num_kv_heads=2,
            out=out,
        )
        return close(out.view(2, 4, 16), expected)

    def paged():
        out = torch.empty(1, 4, 16, dtype=BF16).npu()
        torch_npu._npu_paged_attention(
            query=q[1:],
            key_cache=keys,
            value_cache=values,
            num_kv_heads=2,
            num_heads=4,
            scale_value=0.25,
            block_table=table,
            context_lens=lengths,
            out=out,
        )
        return close(out, expected[1:])

    def fused(table=table):
        out, _ = torch_npu.npu_fused_infer_attention_score(
            q[1:].flatten(1)[:, None],
            keys.flatten(2),
            values.flatten(2),
            num_heads=4,
            num_key_value_heads=2,
            scale=0.25,
            input_layout="BSH",
            block_table=table,
            block_size=128,
            actual_seq_lengths_kv=[130],
        )
        return close(out.view(1, 4, 16), expected[1:])

    def fused_v2():
        out, _ = torch_npu.npu_fused_infer_attention_score_v2(
            q[None],
            keys.flatten(2),
            values.flatten(2),
            num_query_heads=4,
            num_key_value_heads=2,
            softmax_scale=0.25,
            input_layout="BSND",
            block_table=table,
            block_size=128,
            actual_seq_qlen=[2],
            actual_seq_kvlen=[130],
            sparse_mode=3,
            atten_mask=torch.ones(2048, 2048).triu(1).bool().npu(),
        )
        return close(out[0], expected)

    call("prefill", prefill)
    call("prefill with an unaligned prefix", lambda: prefill(torch.tensor([131], dtype=I32)))
    call("paged", paged)
    call("fused", fused)
    call("fused v2", fused_v2)
    call("fused block out of range", lambda: fused(table + 3))


def routing():
    x, gates = npu(5, 64), npu(5, 4, dtype=torch.float32)
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k_softmax(gates, k=2)

    def route(ids):
        return torch.ops.npu.npu_moe_init_routing_v2(
            x,
            ids,
            active_num=10,
            expert_num=4,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            active_expert_range=[0, 4],
            quant_mode=-1,
        )

    def there_and_back():
        rows, where, counts, _ = route(ids)
        back = torch.ops.npu.npu_moe_finalize_routing(
            rows,
            skip1=None,
            skip2=None,
            bias=None,
            scales=weights.to(BF16),
            expanded_src_to_dst_row=where,
            export_for_source_row=ids,
            drop_pad_mode=2,
        )
        return (
            close(back, x.cpu().float() * weights.cpu().sum(1, keepdim=True))
            and counts.cpu().tolist() == torch.bincount(ids.cpu().flatten(), minlength=4).tolist()
        )

    def softmax_of_best():
        y, again, _ = torch.ops.npu.npu_moe_gating_top_k_softmax_v2(gates, k=2, renorm=1)
        return close(y, weights.cpu() / weights.cpu().sum(1, keepdim=True)) and again.equal(ids)

    call("routing", there_and_back)
    call("routing softmax of the best", softmax_of_best)
    call("routing expert out of range", lambda: route(ids + 1))


def small():
    x, gamma = npu(6, 64), npu(64)
    call(
        "norm",
        lambda: close(
            torch_npu.npu_rms_norm(x, gamma, 1e-6)[0],
            torch.nn.functional.rms_norm(x.cpu().float(), (64,), gamma.cpu().float(), 1e-6),
        ),
    )
    call("norm gamma float32", lambda: torch_npu.npu_rms_norm(x, gamma.float(), 1e-6))
    call(
        "swiglu",
        lambda: close(
            torch_npu.npu_swiglu(x),
            torch.nn.functional.silu(x.cpu().float()[:, :32]) * x.cpu().float()[:, 32:],
        ),
    )
    call(
        "top k above 1024",
        lambda: torch_npu.npu_top_k_top_p(npu(1, 2000, dtype=torch.float32), None, ints(1025)),
    )
    logits, mask = npu(1, 40, dtype=torch.float32), ints([5, 0])

    def grammar():
        torch.ops.npu.apply_token_bitmask(logits, mask)
        return (logits.cpu() > -torch.inf).nonzero()[:, 1].tolist() == [0, 2]

    call("grammar mask", grammar)
    call(
        "no model",
        lambda: torch_npu.npu_quantize(x, torch.ones(1).npu(), None, torch.qint8, -1, False),
    )


for part in (dense, grouped, attention, routing, small):
    call(part.__name__ + " part", part)
print(json.dumps(results))
