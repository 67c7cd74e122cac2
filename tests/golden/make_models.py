"""Makes the golden models of Mamba, flash-linear-attention and xLSTM beside those of make_golden.py.

    python tests/golden/make_models.py [--to FOLDER] [NAME...]

Needs torch, safetensors, transformers, flash-linear-attention (fla) and xlstm. README.md lists the files.
"""
import argparse
import dataclasses
import json
import os
import sys

import torch
import torch.nn.functional as F

chosen = argparse.ArgumentParser()
chosen.add_argument("--to")
chosen.add_argument("names", nargs="*")
chosen = chosen.parse_args()
sys.argv[1:] = [chosen.to] if chosen.to else []  # make_golden reads the folder there
import make_golden  # noqa: E402
from golden_mixer import scatter  # noqa: E402
from make_mixers import Constant, stateless  # noqa: E402

MODELS = {}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 61}


def model_file(name, whole, keep=()):
    make_golden.model_file(name, whole, 2, 13, name + "_config.json", lambda m: scatter(m, keep))


def model(seed):
    """With a draw at which float32 is within 3e-6 of float64: a test of float32 can tell something."""
    def add(f):
        MODELS[f.__name__] = f, seed
        return f
    return add


@model(seed=4)
def mamba():
    from transformers import MambaConfig, MambaForCausalLM
    model_file("mamba", MambaForCausalLM(MambaConfig(**SIZES, state_size=5, tie_word_embeddings=True)),
               keep=("A_log", "D", "dt_proj.bias"))


@model(seed=4)
def mamba2():
    from transformers import Mamba2Config, Mamba2ForCausalLM
    config = Mamba2Config(**SIZES, num_heads=4, head_dim=8, state_size=6, n_groups=2, chunk_size=8,
                          time_step_limit=(0.005, float("inf")))
    model_file("mamba2", Mamba2ForCausalLM(config), keep=("A_log", "D", "dt_bias"))


def fla_model(name, make, config, keep=()):
    import fla_on_cpu  # noqa: F401
    model_file(name, make(config), keep)


@model(seed=2)
def retnet():
    from fla.models import RetNetConfig, RetNetForCausalLM
    fla_model("retnet", RetNetForCausalLM, RetNetConfig(**SIZES, num_heads=4, num_kv_heads=2, intermediate_size=40,
                                                        fuse_cross_entropy=False))


@model(seed=2)
def gla():
    from fla.models import GLAConfig, GLAForCausalLM
    fla_model("gla", GLAForCausalLM, GLAConfig(**SIZES, num_heads=2, use_short_conv=True, intermediate_size=40,
                                               fuse_cross_entropy=False))


@model(seed=2)
def hgrn2():
    from fla.models import HGRN2Config, HGRN2ForCausalLM
    fla_model("hgrn2", HGRN2ForCausalLM, HGRN2Config(**SIZES, expand_ratio=8, intermediate_size=40,
                                                     fuse_cross_entropy=False))


@model(seed=10)
def deltanet():
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM
    fla_model("deltanet", DeltaNetForCausalLM,
              DeltaNetConfig(**SIZES, num_heads=2, use_gate=True, intermediate_size=40, fuse_cross_entropy=False))


@model(seed=10)
def gated_deltanet():
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
    config = GatedDeltaNetConfig(**SIZES, num_heads=2, num_v_heads=4, head_dim=4, expand_v=1, intermediate_size=40,
                                 fuse_cross_entropy=False)
    fla_model("gated_deltanet", GatedDeltaNetForCausalLM, config, keep=("A_log", "dt_bias"))


@model(seed=6)
def kda():
    from fla.models import KDAConfig, KDAForCausalLM
    fla_model("kda", KDAForCausalLM,
              KDAConfig(**SIZES, num_heads=2, head_dim=6, intermediate_size=40, fuse_cross_entropy=False),
              keep=("A_log", "dt_bias"))


class Described(torch.nn.Module):
    """A model of the xlstm package called as those of transformers are, its parameters under their own names."""

    def __init__(self, own, config):
        super().__init__()
        self.own, self.config = own, config

    def named_parameters(self, *_, **__):
        return self.own.named_parameters()

    def forward(self, input_ids, labels, use_cache):
        logits = self.own(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return type("Output", (), {"logits": logits, "loss": loss})


class Dictionary(dict):
    """A configuration that is written as it is."""

    def __getattr__(self, name):
        return self[name]

    def __setattr__(self, name, value):
        pass

    def to_json_string(self, **_):
        return json.dumps({k: v for k, v in self.items()}, indent=2, sort_keys=True)


@model(seed=8)
def xlstm_large():
    from transformers import xLSTMConfig
    from transformers.models.xlstm import modeling_xlstm as hf
    config = xLSTMConfig(**SIZES, num_heads=2, gate_soft_cap=5.0, output_logit_soft_cap=8.0,
                         mode="train", return_last_states=False, chunkwise_kernel="parallel--native_autograd", autocast_kernel_dtype="float32")
    whole = hf.xLSTMForCausalLM(config)
    for block in whole.backbone.blocks:
        stateless(block.mlstm_layer)
    with Constant():
        model_file("xlstm_large", whole, keep=("gate_preact.bias",))


@model(seed=9)
def xlstm():
    from xlstm import FeedForwardConfig, mLSTMBlockConfig, mLSTMLayerConfig, sLSTMBlockConfig, sLSTMLayerConfig
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig
    slstm = sLSTMLayerConfig(num_heads=2, backend="vanilla", dtype="float32", enable_automatic_mixed_precision=False)
    config = xLSTMLMModelConfig(mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=2)),
                                slstm_block=sLSTMBlockConfig(slstm=slstm, feedforward=FeedForwardConfig()), slstm_at=[1],
                                context_length=16, num_blocks=2, embedding_dim=16, vocab_size=61)
    with Constant():
        model_file("xlstm", Described(xLSTMLMModel(config), Dictionary(dataclasses.asdict(config))),
                   keep=("skip", "gate.bias", "norm"))


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in chosen.names or MODELS:
        make, seed = MODELS[name]
        torch.manual_seed(seed)
        make()


if __name__ == "__main__":
    main()
