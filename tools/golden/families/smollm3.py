"""SmolLM3: the fourth of five layers knows no positions."""

import gguf
from make_tiny_families import Case
from transformers import SmolLM3Config, SmolLM3ForCausalLM


class Plain(Case):
    name = "smollm3"
    architecture = gguf.MODEL_ARCH.SMOLLM3
    config, model = SmolLM3Config, SmolLM3ForCausalLM
    permutes = True
    settings = dict(num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
                    rope_parameters=dict(rope_type="default", rope_theta=5000000.0))


CASES = [Plain]
