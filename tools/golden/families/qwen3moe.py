"""Qwen 3 by experts."""

import gguf
from make_tiny_families import Case, stacked_experts
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


class Plain(Case):
    name = "qwen3moe"
    architecture = gguf.MODEL_ARCH.QWEN3MOE
    config, model = Qwen3MoeConfig, Qwen3MoeForCausalLM
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32,
                    norm_topk_prob=True, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_expert_count(cfg.num_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)

    def tensors(self, model):
        return stacked_experts(super().tensors(model))


CASES = [Plain]
