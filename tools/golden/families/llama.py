"""Mistral 7B v0.1, which is a llama with a window; `make_tiny_llama.py` makes the others."""

import gguf
from make_tiny_families import Case
from transformers import MistralConfig, MistralForCausalLM


class Mistral(Case):
    name = "mistral"
    architecture = gguf.MODEL_ARCH.LLAMA
    config, model = MistralConfig, MistralForCausalLM
    permutes = True
    settings = dict(sliding_window=9, tie_word_embeddings=False, num_hidden_layers=2,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))

    def keys(self, writer, cfg):
        writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
        writer.add_sliding_window(cfg.sliding_window)


CASES = [Mistral]
