"""Qwen 2: biases of query, key and value."""

import gguf
from make_tiny_families import Case
from transformers import Qwen2Config, Qwen2ForCausalLM


class Plain(Case):
    name = "qwen2"
    architecture = gguf.MODEL_ARCH.QWEN2
    config, model = Qwen2Config, Qwen2ForCausalLM
    # Heads are of hidden_size / heads here.
    settings = dict(num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))


class Yarn(Plain):
    """As the model cards say for long texts."""

    name = "qwen2_yarn"
    settings = {**Plain.settings, "tie_word_embeddings": False, "num_hidden_layers": 2,
                "rope_parameters": dict(rope_type="yarn", factor=4.0, rope_theta=10000.0,
                                        original_max_position_embeddings=16)}

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)


CASES = [Plain, Yarn]
