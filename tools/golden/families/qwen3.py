"""Qwen 3, dense: norms of query and key heads, heads wider than width / heads; and Qwen3-VL, of which
the part for images is made, saved and not asked."""

from pathlib import Path

import gguf
import torch
from make_tiny_families import Case, stacked_experts
from safetensors.torch import load_file, save_file
from transformers import (Qwen3Config, Qwen3ForCausalLM, Qwen3VLConfig,
                          Qwen3VLForConditionalGeneration, Qwen3VLMoeConfig,
                          Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeTextConfig,
                          Qwen3VLTextConfig)


class Plain(Case):
    name = "qwen3"
    architecture = gguf.MODEL_ARCH.QWEN3
    config, model = Qwen3Config, Qwen3ForCausalLM
    settings = dict(rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))


class TextOf:
    """The part of a model of images and texts that reads texts, as a model."""

    VISION = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=1, patch_size=2,
                  spatial_merge_size=1, temporal_patch_size=1, out_hidden_size=32,
                  num_position_embeddings=4, deepstack_visual_indexes=[0])
    CLASSES = Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def __init__(self, cfg):
        config, model = self.CLASSES
        self.whole = model(config(text_config=cfg.to_dict(), vision_config=self.VISION,
                                  tie_word_embeddings=True))
        self.config, self.model = cfg, self.whole.model.language_model
        self.save_pretrained = self.whole.save_pretrained

    def float(self):
        self.whole.float()
        return self

    def eval(self):
        self.whole.eval()
        return self

    def named_parameters(self):
        for name, parameter in self.whole.named_parameters():
            if ".visual." not in name:
                yield name.replace("language_model.", ""), parameter

    def __call__(self, ids, use_cache):
        return self.whole(input_ids=ids, use_cache=use_cache)


class Vision(Case):
    name = "qwen3vl"
    architecture = gguf.MODEL_ARCH.QWEN3VL
    config, model = Qwen3VLTextConfig, TextOf
    settings = dict(num_hidden_layers=2, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0,
                                         mrope_section=[4, 2, 2], mrope_interleaved=True))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_sections([4, 2, 2, 0])
        writer.add_num_deepstack_layers(1)


class TextOfExperts(TextOf):
    CLASSES = Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    def __init__(self, cfg):
        super().__init__(cfg)
        self.save_pretrained = self.save

    def save(self, folder, **options):
        """As Qwen publishes them. Newer versions of transformers save the matrices as they keep them,
        and turn them over on reading where their shape says so."""
        self.whole.save_pretrained(folder, **options)
        path = Path(folder) / "model.safetensors"
        tensors = load_file(path)
        turned = {name: values.transpose(1, 2).contiguous() if ".mlp.experts." in name else values
                  for name, values in tensors.items()}
        save_file(turned, path, metadata={"format": "pt"})
        read = self.CLASSES[1].from_pretrained(folder, dtype="float32")
        for (name, mine), (_, theirs) in zip(self.whole.named_parameters(), read.named_parameters()):
            assert torch.equal(mine, theirs), name


class VisionExperts(Vision):
    """Its folders hold experts' matrices turned over."""

    name = "qwen3vlmoe"
    architecture = gguf.MODEL_ARCH.QWEN3VLMOE
    config, model = Qwen3VLMoeTextConfig, TextOfExperts
    settings = dict(Vision.settings, num_attention_heads=2, num_key_value_heads=1, num_experts=4,
                    num_experts_per_tok=2, moe_intermediate_size=64)

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_expert_count(cfg.num_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)

    def tensors(self, model):
        return stacked_experts(super().tensors(model))


CASES = [Plain, Vision, VisionExperts]
