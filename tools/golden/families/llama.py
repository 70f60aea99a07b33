"""Mistral 7B v0.1, which is a llama with a window, and Mixtral, one with experts; `make_tiny_llama.py` makes the others."""

import gguf
from make_tiny_families import Case, stacked_experts
from transformers import (MistralConfig, MistralForCausalLM, MixtralConfig,
                          MixtralForCausalLM)


class Mistral(Case):
    name = "mistral"
    architecture = gguf.MODEL_ARCH.LLAMA
    config, model = MistralConfig, MistralForCausalLM
    permutes = True
    settings = dict(sliding_window=9, tie_word_embeddings=False, num_hidden_layers=2,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_sliding_window(cfg.sliding_window)


class Mixtral(Case):
    name = "mixtral"
    architecture = gguf.MODEL_ARCH.LLAMA
    config, model = MixtralConfig, MixtralForCausalLM
    permutes = True
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
                    sliding_window=None, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_expert_count(cfg.num_local_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)

    def tensors(self, model):
        return stacked_experts(super().tensors(model))


CASES = [Mistral, Mixtral]
