"""EXAONE 4: as the small model is, and as the large one is, with windows and a layer that knows no
positions."""

import gguf
from make_tiny_families import Case
from transformers import Exaone4Config, Exaone4ForCausalLM


class Small(Case):
    name = "exaone4"
    architecture = gguf.MODEL_ARCH.EXAONE4
    config, model = Exaone4Config, Exaone4ForCausalLM
    # Heads are of hidden_size / heads here.
    settings = dict(num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5,
                    sliding_window=None, layer_types=["full_attention"] * 3,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        if cfg.sliding_window:
            slides = [kind == "sliding_attention" for kind in cfg.layer_types]
            writer.add_sliding_window(cfg.sliding_window)
            writer.add_sliding_window_pattern(slides)


class Large(Small):
    name = "exaone4_large"
    settings = dict(Small.settings, num_hidden_layers=4, sliding_window=7,
                    sliding_window_pattern=4, tie_word_embeddings=False,
                    layer_types=["sliding_attention"] * 3 + ["full_attention"])


CASES = [Small, Large]
