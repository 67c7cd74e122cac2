"""Makes mixers/*.safetensors: public reference implementations of single mixers, for the C tests to compare with.

    python tests/golden/make_mixers.py [--to FOLDER] [NAME...]

Needs torch, safetensors, transformers, flash-linear-attention (fla) and xlstm; Weft and its tests need none of
them. The references' own modules are run, in float64 and on the CPU; see fla_on_cpu.py for what that takes.
"""
import argparse
import os
import re
import sys

import torch
from torch.overrides import TorchFunctionMode

import definitions
import golden_mixer
from golden_mixer import D, LENGTHS, golden, weft_name

MIXERS = {}
SHORT, WITH_STATE = (5, 30), (1, 40)  # lengths


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


def fla_golden(name, options, make, **more):
    """`make`: makes one of fla's layers; they return (y, attentions, cache)."""
    import fla_on_cpu  # noqa: F401: replaces what needs a GPU
    more = {"call": lambda module, x: module(x)[0], **more}
    golden(name, options, make, **more)


def fla_state(heads, k, v, convolved=True):
    """Slots of a layer of q, k, v with short convolutions of 4 tokens."""
    wide = {"q_conv": heads * k, "k_conv": heads * k, "v_conv": heads * v} if convolved else {}
    return {"s": (heads, k, v), **{name: (3, d) for name, d in wide.items()}}


def fla_state_golden(name, options, make, state, v_first=True, **more):
    import fla_on_cpu
    golden(name, options, make, fla_on_cpu.call_with_state(v_first), state=state, lengths=WITH_STATE, **more)


@mixer
def simple_gla():
    import fla.layers.simple_gla as f
    fla_golden("simple_gla", "simple_gla heads=2",
               lambda: f.SimpleGatedLinearAttention(hidden_size=D, num_heads=2))
    fla_golden("simple_gla_plain", "simple_gla heads=2 expand_k=0.5 expand_v=2 gate_norm=4 conv=false",
               lambda: f.SimpleGatedLinearAttention(hidden_size=D, num_heads=2, expand_k=0.5, expand_v=2.0,
                                                    gate_logit_normalizer=4, use_short_conv=False))
    fla_state_golden("simple_gla_state", "simple_gla heads=2", state=fla_state(2, 8, 8),
                     make=lambda: f.SimpleGatedLinearAttention(hidden_size=D, num_heads=2, layer_idx=0))


@mixer
def retnet():
    import fla.layers.multiscale_retention as f
    fla_golden("retnet", "retnet heads=2", lambda: f.MultiScaleRetention(hidden_size=D, num_heads=2))
    fla_state_golden("retnet_state", "retnet heads=2", state=fla_state(2, 8, 16, False), v_first=False,
                     make=lambda: f.MultiScaleRetention(hidden_size=D, num_heads=2, layer_idx=0))


@mixer
def gla():
    import fla.layers.gla as f
    fla_golden("gla", "gla heads=2", lambda: f.GatedLinearAttention(hidden_size=D, num_heads=2))
    fla_golden("gla_conv", "gla heads=2 expand_k=1 expand_v=0.5 gate_norm=2 gate_rank=5 conv=true",
               lambda: f.GatedLinearAttention(hidden_size=D, num_heads=2, expand_k=1.0, expand_v=0.5, use_short_conv=True,
                                              gate_logit_normalizer=2, gate_low_rank_dim=5))
    fla_golden("gla_groups", "gla heads=4 kv_heads=2 expand_k=1 use_gate=false",
               lambda: f.GatedLinearAttention(hidden_size=D, num_heads=4, num_kv_heads=2, expand_k=1.0, use_output_gate=False))
    fla_state_golden("gla_state", "gla heads=2", state=fla_state(2, 4, 8, False),
                     make=lambda: f.GatedLinearAttention(hidden_size=D, num_heads=2, layer_idx=0))


class BoundedHGRN2(torch.nn.Module):
    """A layer of a model of four, whose lower bounds are one parameter of the model."""

    def __init__(self, layer, **options):
        from fla.layers.hgrn2 import HGRN2Attention
        super().__init__()
        self.layer = HGRN2Attention(hidden_size=D, expand_ratio=8, layer_idx=layer, **options)
        self.lower_bounds = torch.nn.Parameter(torch.zeros(4, D))

    def forward(self, x):
        bounds = self.lower_bounds.softmax(0)
        return self.layer(x, lower_bound=(bounds.cumsum(0) - bounds[0])[self.layer.layer_idx])


@mixer
def hgrn2():
    for layer in (0, 2):
        fla_golden(f"hgrn2_layer{layer}", "hgrn2 expand_ratio=8" + (" conv=true" if layer else ""),
                   lambda: BoundedHGRN2(layer, use_short_conv=bool(layer)), layer=layer, layers=4, eps=1e-6,
                   parts=lambda n, t, _: {weft_name(n.removeprefix("layer.")): t},
                   unused=() if layer else ("lower_bounds",))


@mixer
def gateloop():
    golden("gateloop", "gateloop heads=2", lambda: definitions.GateLoop(2, False))
    golden("gateloop_complex", "gateloop heads=2 complex=true", lambda: definitions.GateLoop(2, True))


@mixer
def deltanet():
    import fla.layers.delta_net as f
    fla_golden("deltanet", "deltanet heads=2", lambda: f.DeltaNet(hidden_size=D, num_heads=2))
    fla_golden("deltanet_negative", "deltanet heads=2 negative_eigenvalues=true use_gate=true",
               lambda: f.DeltaNet(hidden_size=D, num_heads=2, allow_neg_eigval=True, use_gate=True))


GATE = ("A_log", "dt_bias")


@mixer
def gated_deltanet():
    import fla.layers.gated_deltanet as f
    fla_golden("gated_deltanet", "gated_deltanet heads=2 head_dim=6", keep=GATE,
               make=lambda: f.GatedDeltaNet(hidden_size=D, num_heads=2, head_dim=6))
    fla_golden("gated_deltanet_grouped", "gated_deltanet heads=2 v_heads=4 head_dim=4 expand_v=1", keep=GATE,
               make=lambda: f.GatedDeltaNet(hidden_size=D, num_heads=2, num_v_heads=4, head_dim=4, expand_v=1))
    fla_state_golden("gated_deltanet_state", "gated_deltanet heads=2 head_dim=4", state=fla_state(2, 4, 8), keep=GATE,
                     make=lambda: f.GatedDeltaNet(hidden_size=D, num_heads=2, head_dim=4, layer_idx=0))


@mixer
def kda():
    import fla.layers.kda as f
    fla_golden("kda", "kda heads=2 head_dim=6", keep=GATE,
               make=lambda: f.KimiDeltaAttention(hidden_size=D, num_heads=2, head_dim=6))
    fla_state_golden("kda_state", "kda heads=2 head_dim=4", state=fla_state(2, 4, 4), keep=GATE,
                     make=lambda: f.KimiDeltaAttention(hidden_size=D, num_heads=2, head_dim=4, layer_idx=0))


@mixer
def fox():
    import fla.layers.forgetting_attn as f
    fla_golden("fox", "attention heads=4 position=none forget_gate=true",
               lambda: f.ForgettingAttention(hidden_size=D, num_heads=4))
    fla_golden("fox_full", "attention heads=4 kv_heads=2 position=none forget_gate=true output_gate=true qk_norm=true "
               "qk_norm_per_head=true",
               lambda: f.ForgettingAttention(hidden_size=D, num_heads=4, num_kv_heads=2, qk_norm=True,
                                             use_output_gate=True))


@mixer
def linear_attention():
    import fla.layers.linear_attn as f

    def parts(name, value, _):
        return {weft_name(name.replace("feature_map_", "").replace(".layer.", "_map.")): value}

    for feature, eps in (("elu", 8), ("relu", 8), ("hedgehog", 16)):  # theirs is added after the scale K^-1/2
        fla_golden(f"linear_attention_{feature}",
                   f"linear_attention heads=2 feature={feature} norm=true eps={1e-10 * eps ** 0.5}", parts=parts,
                   make=lambda: f.LinearAttention(hidden_size=D, num_heads=2, feature_map=feature, do_feature_map_norm=True))
    import fla.layers.based as g
    fla_golden("linear_attention_taylor", "linear_attention heads=2 feature=taylor feature_dim=4 eps=1e-12",
               lambda: g.BasedLinearAttention(hidden_size=D, feature_dim=4, num_heads=2, num_key_value_heads=2),
               call=lambda module, x: module.forward_reference(x))


@mixer
def lightning():
    golden("lightning", "lightning heads=4", lambda: definitions.Lightning(4, 1, 3, False), layer=1, layers=3)
    golden("lightning_lrpe", "lightning heads=2", lambda: definitions.Lightning(2, 0, 3, True), layer=0, layers=3)


# ---- Mamba, by transformers --------------------------------------------------------------------------------------


class MambaState(TorchFunctionMode):
    """The cache of one layer, from and to a state in Weft's names and layouts. What the layer would copy into it, over
    numbers that the backward needs, takes its place instead."""

    def __init__(self, state, name, turned):
        super().__init__()
        self.name, self.turned = name, (lambda s: s.transpose(-1, -2)) if turned else (lambda s: s)
        self.window, self.recurrent = state["conv"].T[None], self.turned(state[name])[None]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            self.recurrent = args[1]
            return args[0]
        return func(*args, **(kwargs or {}))

    def get_conv_state(self, *_, **__):
        return self.window

    def get_recurrent_state(self, *_, **__):
        return self.recurrent

    def is_recording_past(self, *_):
        return True  # the window comes from update_conv_state, for single tokens too

    def update_conv_state(self, x, *_, **__):
        seen = torch.cat([self.window, x], dim=-1)
        self.window = seen[..., -self.window.shape[-1]:]
        return seen

    def update_recurrent_state(self, state, *_, **__):
        self.recurrent = state

    def state(self):
        return {"conv": self.window[0].T, self.name: self.turned(self.recurrent[0])}


def mamba_call(name, turned, at_once):
    def call(module, x, state):
        cache = MambaState(state, name, turned)
        with cache:
            parts = (x,) if at_once else x.split(1, dim=1)
            return torch.cat([module(part, cache=cache) for part in parts], dim=1), cache.state()
    return call


@mixer
def mamba():
    """REFERENCES: a folder with mamba_ssm/ops/selective_scan_interface.py of state-spaces/mamba."""
    from transformers.models.mamba import modeling_mamba as hf
    keep = ("A_log", "D", "dt_proj.bias")
    golden("mamba", "mamba state=5", lambda: hf.MambaMixer(hf.MambaConfig(hidden_size=D, state_size=5), 0).eval(), keep=keep)
    golden("mamba_state", "mamba state=5", lambda: hf.MambaMixer(hf.MambaConfig(hidden_size=D, state_size=5), 0).eval(),
           mamba_call("h", False, False), keep=keep, lengths=WITH_STATE, state={"conv": (3, 2 * D), "h": (2 * D, 5)})
    own, scan = hf.mamba_selective_scan, selective_scan_of_mamba_ssm()
    hf.mamba_selective_scan = scan
    config = hf.MambaConfig(hidden_size=D, state_size=7, time_step_rank=3, conv_kernel=3)
    golden("mamba_ssm", "mamba state=7 dt_rank=3 conv_width=3", lambda: hf.MambaMixer(config, 0).eval(), keep=keep)
    hf.mamba_selective_scan = own
    assert scan.calls == len(LENGTHS)


def selective_scan_of_mamba_ssm():
    """The reference scan that the package's CUDA kernel is tested against; the rest of the package wants a GPU."""
    from types import ModuleType
    needs = {"mamba_ssm.utils.torch": ("custom_bwd", "custom_fwd"), "mamba_ssm.ops.triton.layer_norm": ("_layer_norm_fwd",)}
    for name, symbols in needs.items():
        for i in range(1, len(name.split(".")) + 1):
            sys.modules.setdefault(".".join(name.split(".")[:i]), ModuleType(name))
        for symbol in symbols:
            setattr(sys.modules[name], symbol, lambda f, **_: f)
    sys.path.append(os.environ["REFERENCES"])
    from selective_scan_interface import selective_scan_ref

    def scan(u, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **_):
        scan.calls += 1
        return selective_scan_ref(u, dt, A, B, C, D, z, delta_bias, delta_softplus)

    scan.calls = 0
    return scan


@mixer
def mamba2():
    from transformers.models.mamba2 import modeling_mamba2 as hf
    sizes = {"hidden_size": D, "state_size": 6, "num_heads": 4, "head_dim": 8, "chunk_size": 16}
    keep = ("A_log", "D", "dt_bias")
    golden("mamba2", "mamba2 head_dim=8 state=6",
           lambda: hf.Mamba2Mixer(hf.Mamba2Config(**sizes, n_groups=1), 0).eval(), keep=keep)
    golden("mamba2_groups", "mamba2 head_dim=8 state=6 groups=2 dt_limit_low=0.4 dt_limit_high=0.9",
           lambda: hf.Mamba2Mixer(hf.Mamba2Config(**sizes, n_groups=2, time_step_limit=(0.4, 0.9)), 0).eval(), keep=keep)
    golden("mamba2_state", "mamba2 head_dim=8 state=6",
           lambda: hf.Mamba2Mixer(hf.Mamba2Config(**sizes, n_groups=1), 0).eval(), mamba_call("s", True, True), keep=keep,
           lengths=WITH_STATE, state={"conv": (3, 2 * D + 12), "s": (4, 6, 8)})


# ---- xLSTM, by the xlstm package ---------------------------------------------------------------------------------


class Constant(TorchFunctionMode):
    """The stabiliser m, a row's maximum, is a constant in Weft's backward: h depends on it by eps = 1e-6 alone. With it
    the least of a gate and 1 passes gradients on: only rounding could bring a gate above 1."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.max:
            return (out[0].detach(), out[1]) if kwargs else out.detach()
        return args[0] + (out - args[0]).detach() if func is torch.minimum else out


def xlstm_name(name):
    return re.sub(r"(outnorm|group_norm|multihead_norm)\.", "norm.", weft_name(name)).replace("proj_", "") \
        .replace("conv.conv.", "conv.").replace("mlstm_cell.", "")


def plus_one(name, value, is_gradient):
    """Their norm weights are stored minus 1."""
    return {xlstm_name(name): value + 1 if "norm" in name and not is_gradient else value}


@mixer
def mlstm():
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    def call(module, x):
        with Constant():
            return module(x)

    golden("mlstm", "mlstm heads=2",
           lambda: mLSTMLayer(mLSTMLayerConfig(embedding_dim=D, num_heads=2, context_length=max(LENGTHS))), call,
           parts=plus_one, keep=("skip", "gate.bias"), cancelling=("mlstm_cell.igate.bias",))


def stateless(layer):
    """The parallel backend has no states to return, where two values are awaited."""
    backend = layer.mlstm_backend.forward
    layer.mlstm_backend.forward = lambda **inputs: (backend(**inputs), None)
    return layer


@mixer
def mlstm_large():
    from xlstm.xlstm_large import model as large

    def make():
        config = large.mLSTMLayerConfig(embedding_dim=D, num_heads=2, mlstm_backend=large.mLSTMBackendConfig(
            chunkwise_kernel="parallel--native_autograd", sequence_kernel="native_sequence__native", step_kernel="native",
            mode="train", return_last_states=False, autocast_kernel_dtype="float32"))
        return stateless(large.mLSTMLayer(config))

    def call(module, x):
        with Constant():
            return module(x)[0]

    golden("mlstm_large", "mlstm heads=2 form=large", make, call, keep=("gate_preact.bias",), eps=1e-6,
           parts=lambda n, t, _: {xlstm_name(n): t}, cancelling=("igate_preact.bias",))
    golden("mlstm_large_state", "mlstm heads=2 form=large", make, call_mlstm_with_state, keep=("gate_preact.bias",),
           eps=1e-6, parts=lambda n, t, _: {xlstm_name(n): t}, lengths=WITH_STATE,
           state={"m": (2,), "s": (2, 4, 9)}, constant=(("m", slice(None)),))


def call_mlstm_with_state(layer, x, state):
    """The package's recurrence in place of its backend, whose other forms take no state."""
    from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw as recurrence
    layer.mlstm_backend.forward = lambda **inputs: recurrence(**inputs, return_last_states=True)
    begun = state["s"][None, ..., :-1], state["s"][None, ..., -1], state["m"][None, :, None]
    with Constant():
        y, (c, n, m) = layer(x, begun)
    return y, {"s": torch.cat([c, n[..., None]], dim=-1)[0], "m": m[0, :, 0]}


@mixer
def slstm():
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    def parts(name, value, is_gradient):
        exchanged = {"igate.weight": "fgate.weight", "fgate.weight": "igate.weight"}  # theirs feed the other gate
        if name.startswith("slstm_cell."):
            return {name.removeprefix("slstm_cell.").strip("_"): value}
        return {exchanged.get(k, k): v for k, v in plus_one(name, value, is_gradient).items()}

    config = {"embedding_dim": D, "num_heads": 2, "backend": "vanilla", "dtype": "float32",
              "enable_automatic_mixed_precision": False}
    golden("slstm", "slstm heads=2", lambda: sLSTMLayer(sLSTMLayerConfig(**config)), parts=parts)
    golden("slstm_plain", "slstm heads=2 conv_width=0",
           lambda: sLSTMLayer(sLSTMLayerConfig(**config, conv1d_kernel_size=0)), parts=parts)

    def call(layer, x, state):
        with Constant():
            y, left = layer(x, state["conv"][None], state["s"].reshape(4, 1, D), return_last_state=True)
        return y, {"conv": left["conv_state"][0], "s": left["slstm_state"].reshape(4, 2, D // 2)}

    def first(state):  # n is a sum of weights
        state["s"][2] = state["s"][2].abs() + 0.5

    golden("slstm_state", "slstm heads=2", lambda: sLSTMLayer(sLSTMLayerConfig(**config)), call, parts=parts,
           lengths=WITH_STATE, state={"conv": (3, D), "s": (4, 2, D // 2)}, constant=(("s", 3),), first=first)


# ---- by definition -----------------------------------------------------------------------------------------------


@mixer
def mingru():
    golden("mingru", "mingru expand=1", lambda: definitions.MinRNN("z", D))


@mixer
def minlstm():
    golden("minlstm", "minlstm expand=1.5", lambda: definitions.MinRNN("if", 24))


@mixer
def aaren():
    golden("aaren", "aaren heads=2 position=none", lambda: definitions.Aaren(2))


@mixer
def base_conv():
    golden("base_conv", "base_conv conv_width=5", lambda: definitions.BaseConv(5))


@mixer
def attention_sigmoid():
    golden("attention_sigmoid", "attention heads=4 kv_heads=2 kind=sigmoid sigmoid_length=20",
           lambda: definitions.SigmoidAttention(4, 2, 20))


@mixer
def attention_selective():
    golden("attention_selective", "attention heads=4 kv_heads=2 temperature=both",
           lambda: definitions.SelectiveAttention(4, 2))


@mixer
def attention_weighted():
    for kind in ("head", "column", "row"):
        golden(f"attention_weighted_{kind}", f"attention heads=4 kv_heads=2 kv_weights={kind}",
               lambda: definitions.WeightedGQA(4, 2, kind), lengths=SHORT)


@mixer
def longnet():
    golden("longnet", "longnet heads=4 segments=8,25,40 dilations=1,2,3",
           lambda: definitions.LongNet(4, ((8, 1), (25, 2), (40, 3))))
    golden("longnet_holes", "longnet heads=2 segments=7 dilations=3", lambda: definitions.LongNet(2, ((7, 3),)),
           lengths=SHORT)


@mixer
def infini_attention():
    for update in ("linear", "delta"):
        golden(f"infini_attention_{update}", f"infini_attention heads=2 segment=12 update={update}",
               lambda: definitions.InfiniAttention(2, 12, update == "delta"))


@mixer
def retnet_paper():
    golden("retnet_paper", "retnet heads=2 norm=paper", lambda: definitions.PaperRetNet(2))


@mixer
def titans():
    golden("titans_linear", "titans variant=lmm heads=2 memory=linear segment=16", lambda: definitions.TitansLMM(2, 16, ()))
    golden("titans_deep", "titans variant=lmm heads=2 memory=deep expand=2 segment=12 step=plain",
           lambda: definitions.TitansLMM(2, 12, (16,)))


# ---- LSTM and GRU, by torch ---------------------------------------------------------------------------------------


class Projected(torch.nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.rnn, self.out = kind(D, width, batch_first=True), torch.nn.Linear(width, D, bias=False)

    def forward(self, x):
        return (self.out(self.rnn(x)[0]),)


def torch_rnn(name, kind):
    merged = kind is torch.nn.LSTM  # its two biases are one: the sum, here with the second 0

    def prepare(module):
        for n, p in module.named_parameters():
            if merged and "bias_hh" in n:
                p.zero_()

    def parts(n, value, _):
        n = n.removeprefix("rnn.").removesuffix("_l0")
        return {} if merged and n == "bias_hh" else {"bias" if merged and n == "bias_ih" else n: value}

    more = {"call": lambda module, x: module(x)[0], "parts": parts, "prepare": prepare}
    golden(name, name, lambda: kind(D, D, batch_first=True), **more)
    golden(f"{name}_wide", f"{name} width=24", lambda: Projected(kind, 24), **more)


@mixer
def lstm():
    torch_rnn("lstm", torch.nn.LSTM)


@mixer
def gru():
    torch_rnn("gru", torch.nn.GRU)


# ---- TTT, by its authors' PyTorch form ---------------------------------------------------------------------------


@mixer
def ttt():
    """REFERENCES: a folder with ttt.py of test-time-training/ttt-lm-pytorch."""
    sys.path.append(os.environ["REFERENCES"])
    import ttt as f

    def call(module, x):
        return module(x, position_ids=torch.arange(x.shape[1])[None])

    def parts(name, value, _):
        name = re.sub(r"^conv_(\w)", r"\1_conv", weft_name(name))
        name = re.sub(r"(ttt_norm|learnable_ttt_lr)_", r"\1.", name)
        name = re.sub(r"^([Wb])(\d)$", lambda m: f"ttt_{'dense' if m[1] == 'W' else 'bias'}_{int(m[2]) - 1}", name)
        return {name: value.flatten(1).squeeze(-1) if "ttt_lr" in name else value}

    for kind, layer, lr in (("linear", f.TTTLinear, 1.0), ("mlp", f.TTTMLP, 0.1)):
        config = f.TTTConfig(hidden_size=D, num_attention_heads=2, use_gate=True, share_qk=True, ttt_base_lr=lr)
        golden(f"ttt_{kind}", f"ttt heads=2 inner={kind}", lambda: layer(config, 0), call, parts,
               keep=("learnable_token_idx", "ttt_norm", "W1", "W2"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", help="another folder than mixers/")
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args()
    golden_mixer.OUT = chosen.to or golden_mixer.OUT
    for name in chosen.names or MIXERS:
        MIXERS[name]()


if __name__ == "__main__":
    main()
