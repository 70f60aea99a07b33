"""Phi-3 (a window for all layers) and Phi-4-mini (LongRoPE over three quarters of a head)."""

import math

import gguf
import numpy as np
from make_tiny_families import Case
from transformers import Phi3Config, Phi3ForCausalLM

TURNING = 12


class Window(Case):
    name = "phi3"
    architecture = gguf.MODEL_ARCH.PHI3
    config, model = Phi3Config, Phi3ForCausalLM
    settings = dict(sliding_window=11, tie_word_embeddings=False, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                         partial_rotary_factor=1.0))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(16)
        writer.add_sliding_window(cfg.sliding_window)


class Stretched(Case):
    """40 tokens of a model made for 16 and stretched to 64: the long factors."""

    name = "phi4_mini"
    architecture = gguf.MODEL_ARCH.PHI3
    config, model = Phi3Config, Phi3ForCausalLM
    LONG = [1.0 + 0.7 * i for i in range(TURNING // 2)]
    SHORT = [1.0 + 0.1 * i for i in range(TURNING // 2)]
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    sliding_window=None, original_max_position_embeddings=16,
                    rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                         partial_rotary_factor=0.75, long_factor=LONG,
                                         short_factor=SHORT, factor=4.0,
                                         original_max_position_embeddings=16))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(TURNING)
        writer.add_rope_scaling_orig_ctx_len(16)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(4.0) / math.log(16)))
        writer.add_sliding_window(0)
        for name, values in [("long", self.LONG), ("short", self.SHORT)]:
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(values, dtype=np.float32))


CASES = [Window, Stretched]
