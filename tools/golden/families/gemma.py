"""Gemma, Gemma 2 (windows, caps, norms on both sides), Gemma 3 (two rotations, norms of heads).

The vendor's code multiplies embeddings by the root of the width in the type of the weights, which
is bfloat16 in all published models; here, in float32, it is given the number so rounded.
"""

import gguf
import torch
from make_tiny_families import Case
from transformers import (Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig,
                          GemmaConfig, GemmaForCausalLM)


class First(Case):
    name = "gemma"
    architecture = gguf.MODEL_ARCH.GEMMA
    config, model = GemmaConfig, GemmaForCausalLM
    norm_offset = 1.0
    # Near 1 once they are multiplied, so that layers count.
    embeddings = 0.25
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))

    def keys(self, writer, cfg):
        """None: the base of its rotation is the usual one."""

    def tensors(self, model):
        scale = model.model.embed_tokens.embed_scale
        scale.copy_(torch.tensor(model.config.hidden_size**0.5).bfloat16().float())
        return super().tensors(model)


class Second(First):
    name = "gemma2"
    architecture = gguf.MODEL_ARCH.GEMMA2
    config, model = Gemma2Config, Gemma2ForCausalLM
    settings = {**First.settings, "num_hidden_layers": 3, "sliding_window": 7,
                "query_pre_attn_scalar": 16, "attn_logit_softcapping": 4.0,
                "final_logit_softcapping": 6.0}

    def keys(self, writer, cfg):
        writer.add_sliding_window(cfg.sliding_window)
        writer.add_attn_logit_softcapping(cfg.attn_logit_softcapping)
        writer.add_final_logit_softcapping(cfg.final_logit_softcapping)


class Third(First):
    """The sixth of seven layers sees everything, its positions stretched eightfold."""

    name = "gemma3"
    architecture = gguf.MODEL_ARCH.GEMMA3
    config, model = Gemma3TextConfig, Gemma3ForCausalLM
    settings = {**First.settings, "num_hidden_layers": 7, "intermediate_size": 32,
                "sliding_window": 7, "query_pre_attn_scalar": 16,
                "rope_parameters": dict(
                    sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0))}

    def keys(self, writer, cfg):
        writer.add_sliding_window(cfg.sliding_window)
        writer.add_rope_freq_base(1000000.0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)


CASES = [First, Second, Third]
