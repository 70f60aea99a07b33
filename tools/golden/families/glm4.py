"""GLM-4: half of each head turns, in adjacent pairs."""

import gguf
from make_tiny_families import Case
from transformers import Glm4Config, Glm4ForCausalLM


class Plain(Case):
    name = "glm4"
    architecture = gguf.MODEL_ARCH.GLM4
    config, model = Glm4Config, Glm4ForCausalLM
    settings = dict(num_hidden_layers=2, attention_bias=True, tie_word_embeddings=False,
                    rms_norm_eps=1e-5,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                         partial_rotary_factor=0.5))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(8)


CASES = [Plain]
