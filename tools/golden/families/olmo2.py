"""OLMo 2 and 3: norms across heads and behind blocks; OLMo 3 has windows, and scales positions in
the layers that see everything."""

import gguf
from make_tiny_families import Case
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM


class Second(Case):
    name = "olmo2"
    architecture = gguf.MODEL_ARCH.OLMO2
    config, model = Olmo2Config, Olmo2ForCausalLM
    # Heads are of hidden_size / heads here.
    settings = dict(num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6,
                    tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=500000.0))


class Third(Second):
    name = "olmo3"
    config, model = Olmo3Config, Olmo3ForCausalLM
    SCALED = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16,
                  attention_factor=1.1386294361119892, beta_fast=32.0, beta_slow=1.0,
                  rope_theta=10000.0)
    settings = dict(Second.settings, num_hidden_layers=4, sliding_window=7,
                    layer_types=["sliding_attention"] * 3 + ["full_attention"],
                    rope_parameters=dict(
                        sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                        full_attention=SCALED))

    def keys(self, writer, cfg):
        writer.add_rope_freq_base(self.SCALED["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(self.SCALED["factor"])
        writer.add_rope_scaling_orig_ctx_len(self.SCALED["original_max_position_embeddings"])
        writer.add_sliding_window(cfg.sliding_window)
        slides = [kind == "sliding_attention" for kind in cfg.layer_types]
        writer.add_sliding_window_pattern(slides)


CASES = [Second, Third]
