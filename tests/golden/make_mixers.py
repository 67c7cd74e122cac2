"""Makes mixers/*.safetensors: public reference implementations of single mixers, for the C tests to compare with.

    python tests/golden/make_mixers.py [NAME...]

Needs torch, safetensors, transformers, flash-linear-attention (fla) and xlstm; Weft and its tests need none of
them. The references' own modules are run, in float64 and on the CPU; see fla_on_cpu.py for what that takes.
"""
import sys

import torch

from golden_mixer import D, golden, weft_name

MIXERS = {}


def mixer(f):
    MIXERS[f.__name__] = f
    return f


# ---- attention: transformers' eager layers -----------------------------------------------------------------------


def causal(t, window=0):
    """0 where seen, -inf elsewhere: (1, 1, T, T)."""
    gap = torch.arange(t)[:, None] - torch.arange(t)[None, :]
    hidden = (gap < 0) | (gap >= window if window else torch.zeros(t, t, dtype=torch.bool))
    return torch.zeros(1, 1, t, t).masked_fill(hidden, -torch.inf)


def transformers_attention(name, options, config, attention, rotary, window=0, **more):
    """An attention layer that is given its mask and its rotary table."""
    config._attn_implementation = "eager"

    def make():
        module = attention(config, 0).eval()
        object.__setattr__(module, "table", rotary(config=config))  # not one of its parameters
        return module

    def call(module, x):
        turn = module.table(x, torch.arange(x.shape[1])[None])
        return module(x, position_embeddings=turn, attention_mask=causal(x.shape[1], window))[0]

    golden(name, f"attention {options}", make, call, **more)


SIZES = {"hidden_size": D, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


@mixer
def attention():
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen3 import modeling_qwen3 as qwen3
    config = llama.LlamaConfig(**SIZES, rope_theta=500.0)
    config.rope_parameters["rope_theta"] = 500.0
    transformers_attention("attention", "heads=4 kv_heads=2 rope_base=500", config, llama.LlamaAttention,
                           llama.LlamaRotaryEmbedding)
    config = qwen3.Qwen3Config(**SIZES, head_dim=6, attention_bias=True, rms_norm_eps=1e-6)
    transformers_attention("attention_qk_norm", "heads=4 kv_heads=2 head_dim=6 qk_norm=true bias=true window=20", config,
                           qwen3.Qwen3Attention, qwen3.Qwen3RotaryEmbedding, window=20, eps=1e-6)


@mixer
def attention_softcap():
    from transformers.models.gemma2 import modeling_gemma2 as gemma2
    config = gemma2.Gemma2Config(**SIZES, head_dim=4, query_pre_attn_scalar=4, attn_logit_softcapping=2.0)
    transformers_attention("attention_softcap", "heads=4 kv_heads=2 softcap=2", config, gemma2.Gemma2Attention,
                           gemma2.Gemma2RotaryEmbedding)


@mixer
def attention_sinks():
    from transformers.models.gpt_oss import modeling_gpt_oss as oss
    config = oss.GptOssConfig(**SIZES, head_dim=4, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    transformers_attention("attention_sinks", "heads=4 kv_heads=2 sinks=true bias=true", config, oss.GptOssAttention,
                           oss.GptOssRotaryEmbedding)


@mixer
def attention_partial():
    from transformers.models.phi import modeling_phi as phi
    config = phi.PhiConfig(**{**SIZES, "num_attention_heads": 2},
                           rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})
    transformers_attention("attention_partial", "heads=2 rope_fraction=0.5 bias=true", config, phi.PhiAttention,
                           phi.PhiRotaryEmbedding,
                           parts=lambda n, t, _: {weft_name(n).replace("dense", "o"): t})


@mixer
def attention_alibi():
    from transformers.models.mpt import modeling_mpt as mpt

    def call(module, x):
        t = x.shape[1]
        return module(x, position_bias=mpt.build_mpt_alibi_tensor(4, t).double(), attention_mask=causal(t) < 0)[0]

    def parts(name, value, _):
        if name == "Wqkv.weight":
            return {f"{n}.weight": part for n, part in zip("qkv", value.chunk(3))}
        return {"o.weight": value}

    golden("attention_alibi", "attention heads=4 position=alibi",
           lambda: mpt.MptAttention(mpt.MptConfig(d_model=D, n_heads=4), 0), call, parts)


# ---- flash-linear-attention's layers -----------------------------------------------------------------------------


def fla_golden(name, mixer_options, layer, **more):
    """`layer`: makes one of fla's layers; they return (y, attentions, cache)."""
    import fla_on_cpu  # noqa: F401: replaces what needs a GPU
    more = {"call": lambda module, x: module(x)[0], **more}
    golden(name, mixer_options, layer, **more)


@mixer
def simple_gla():
    import fla.layers.simple_gla as f
    fla_golden("simple_gla", "simple_gla heads=2",
               lambda: f.SimpleGatedLinearAttention(hidden_size=D, num_heads=2))
    fla_golden("simple_gla_plain", "simple_gla heads=2 expand_k=0.5 expand_v=2 gate_norm=4 conv=false",
               lambda: f.SimpleGatedLinearAttention(hidden_size=D, num_heads=2, expand_k=0.5, expand_v=2.0,
                                                    gate_logit_normalizer=4, use_short_conv=False))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MIXERS:
        MIXERS[chosen]()
