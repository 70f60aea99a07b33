"""Gemma 4: heads of two sizes, norms of queries, keys and values, a scale for each layer. As the small
models are (layers that read earlier keys, embeddings for each layer), as the large one is (values
that are keys before their norm, fewer heads of keys in layers that see everything) and as the one by
experts is."""

import gguf
import numpy as np
import torch
from make_tiny_families import Case
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


class Small(Case):
    name = "gemma4"
    architecture = gguf.MODEL_ARCH.GEMMA4
    config, model = Gemma4TextConfig, Gemma4ForCausalLM
    own_heads = True
    # Near 1 once they are multiplied, so that layers count.
    embeddings = 0.25
    settings = dict(num_hidden_layers=5, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=16, global_head_dim=32, intermediate_size=32,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention",
                                 "sliding_attention", "full_attention"],
                    num_kv_shared_layers=2, use_double_wide_mlp=True, sliding_window=7,
                    hidden_size_per_layer_input=16, vocab_size_per_layer_input=72,
                    final_logit_softcapping=6.0, rms_norm_eps=1e-6,
                    rope_parameters=dict(
                        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                        full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25,
                                            rope_theta=1000000.0)))

    def keys(self, writer, cfg):
        small = cfg.per_layer_config["sliding_attention"]
        slides = [kind == "sliding_attention" for kind in cfg.layer_types]
        large = cfg.per_layer_config["full_attention"]
        writer.add_key_length(large.head_dim)
        writer.add_value_length(large.head_dim)
        writer.add_key_length_swa(small.head_dim)
        writer.add_value_length_swa(small.head_dim)
        writer.add_head_count_kv([small.num_key_value_heads if slide else large.num_key_value_heads
                                  for slide in slides])
        writer.add_shared_kv_layers(cfg.num_kv_shared_layers)
        writer.add_embedding_length_per_layer_input(cfg.hidden_size_per_layer_input or 0)
        writer.add_sliding_window(cfg.sliding_window)
        writer.add_sliding_window_pattern(slides)
        writer.add_rope_freq_base(cfg.rope_parameters["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(cfg.rope_parameters["sliding_attention"]["rope_theta"])
        writer.add_rope_dimension_count(large.head_dim)
        writer.add_rope_dimension_count_swa(small.head_dim)
        if cfg.final_logit_softcapping:
            writer.add_final_logit_softcapping(cfg.final_logit_softcapping)
        turning = int(large.head_dim * 0.25 / 2)
        rest = large.head_dim // 2 - turning
        writer.add_tensor("rope_freqs.weight",
                          np.array([1.0] * turning + [1e30] * rest, dtype=np.float32))

    def tensors(self, model):
        # As in `gemma.py`.
        scale = model.model.embed_tokens.embed_scale
        scale.copy_(torch.tensor(model.config.hidden_size**0.5).bfloat16().float())
        yield from super().tensors(model)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                layer = name.split(".")[2]
                yield f"blk.{layer}.layer_output_scale.weight", tuple(buffer.shape), buffer.copy_


class Large(Small):
    name = "gemma4_large"
    settings = dict(Small.settings, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, num_global_key_value_heads=1, attention_k_eq_v=True,
                    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                    num_kv_shared_layers=0, use_double_wide_mlp=False,
                    hidden_size_per_layer_input=0)


class Experts(Large):
    name = "gemma4_experts"
    settings = dict(Large.settings, enable_moe_block=True, num_experts=5, top_k_experts=2,
                    moe_intermediate_size=16)

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_expert_count(cfg.num_experts)
        writer.add_expert_used_count(cfg.top_k_experts)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)

    def stored_name(self, names, name):
        layer = name.split(".")[2]
        for end, stem in [("router.scale", "ffn_gate_inp"), ("per_expert_scale", "ffn_down_exps")]:
            if name.endswith(end):
                return f"blk.{layer}.{stem}.scale"
        return super().stored_name(names, name)


CASES = [Small, Large, Experts]
