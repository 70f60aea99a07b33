"""ERNIE 4.5: adjacent pairs turn, in rows as they are published."""

import gguf
from make_tiny_families import Case
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM


class Plain(Case):
    name = "ernie4_5"
    architecture = gguf.MODEL_ARCH.ERNIE4_5
    config, model = Ernie4_5Config, Ernie4_5ForCausalLM
    settings = dict(rms_norm_eps=1e-5,
                    rope_parameters=dict(rope_type="default", rope_theta=500000.0))


CASES = [Plain]
