"""Qwen 3.5 and 3.6, dense and by experts, and Qwen3-Next: gated delta nets before layers that attend
(one before each here, three in published models)."""

import gguf
import numpy as np
import torch
from make_tiny_families import Case, random_values, stacked_experts
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

NETS = {
    "in_proj_qkv.weight": "attn_qkv.weight",
    "in_proj_z.weight": "attn_gate.weight",
    "in_proj_a.weight": "ssm_alpha.weight",
    "in_proj_b.weight": "ssm_beta.weight",
    "in_proj_ba.weight": "ssm_ba.weight",
    "out_proj.weight": "ssm_out.weight",
    "conv1d.weight": "ssm_conv1d.weight",
    "A_log": "ssm_a",
    "dt_bias": "ssm_dt.bias",
    "norm.weight": "ssm_norm.weight",
}


class Dense(Case):
    name = "qwen35"
    architecture = gguf.MODEL_ARCH.QWEN35
    config, model = Qwen3_5TextConfig, Qwen3_5ForCausalLM
    norm_offset = 1.0
    settings = dict(num_hidden_layers=4, layer_types=["linear_attention", "full_attention"] * 2,
                    intermediate_size=32, rms_norm_eps=1e-6,
                    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
                    linear_value_head_dim=16, linear_conv_kernel_dim=4,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                         partial_rotary_factor=0.5, mrope_section=[2, 1, 1]))
    # Whether files have heads of values by turns of keys, where the vendor has them in groups.
    tiled = True

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(
            int(cfg.head_dim * cfg.rope_parameters["partial_rotary_factor"]))
        writer.add_ssm_conv_kernel(cfg.linear_conv_kernel_dim)
        writer.add_ssm_state_size(cfg.linear_key_head_dim)
        writer.add_ssm_group_count(cfg.linear_num_key_heads)
        writer.add_ssm_time_step_rank(cfg.linear_num_value_heads)
        writer.add_ssm_inner_size(cfg.linear_value_head_dim * cfg.linear_num_value_heads)
        writer.add_uint32(f"{gguf.MODEL_ARCH_NAMES[self.architecture]}.full_attention_interval", 2)

    def stored_name(self, names, name):
        if ".linear_attn." in name:
            path, inner = name.split(".linear_attn.")
            return f"blk.{path.split('.')[2]}.{NETS[inner]}"
        return super().stored_name(names, name)

    def offset_of(self, name):
        return 0.0 if "ssm_norm" in name else super().offset_of(name)

    def values(self, rng, name, shape):
        if name.endswith("ssm_a"):
            # Some heads forget soon and some late.
            return (-np.exp(rng.uniform(-3.0, 1.0, shape))).astype(np.float32)
        values = random_values(self, rng, name, shape)
        # Few layers attend: they shall look closely.
        return 2 * values if "attn_q_norm" in name else values

    def grouped(self, cfg, values, dim, head):
        """Heads of values as the vendor has them, of those in a file."""
        if not self.tiled:
            return values
        keys = cfg.linear_num_key_heads
        each = cfg.linear_num_value_heads // keys
        shape = values.shape
        apart = values.reshape(*shape[:dim], each, keys, head, *shape[dim + 1:])
        return apart.swapaxes(dim, dim + 1).reshape(shape)

    def tensors(self, model):
        cfg = model.config
        queries_keys = 2 * cfg.linear_num_key_heads * cfg.linear_key_head_dim
        for name, shape, put in super().tensors(model):
            yield name, *self.taken(cfg, name, shape, put, queries_keys)

    def taken(self, cfg, name, shape, put, queries_keys):
        head = cfg.linear_value_head_dim

        def values_below(values):
            """Rows of values stand below those of queries and keys."""
            above, below = values[:queries_keys], values[queries_keys:]
            return np.concatenate([above, self.grouped(cfg, below, 0, head)])

        def changed(change):
            return lambda values: put(torch.from_numpy(
                np.ascontiguousarray(change(np.asarray(values)))).reshape(shape))

        inner = name.split(".", 2)[-1]
        change = {
            "attn_qkv.weight": values_below,
            "ssm_conv1d.weight": values_below,
            "attn_gate.weight": lambda v: self.grouped(cfg, v, 0, head),
            "ssm_alpha.weight": lambda v: self.grouped(cfg, v, 0, 1),
            "ssm_beta.weight": lambda v: self.grouped(cfg, v, 0, 1),
            "ssm_dt.bias": lambda v: self.grouped(cfg, v, 0, 1),
            "ssm_a": lambda v: self.grouped(cfg, np.log(-v), 0, 1),
            "ssm_out.weight": lambda v: self.grouped(cfg, v, 1, head),
        }.get(inner)
        is_net = change and (inner.startswith("ssm") or "attn_" in inner)
        if not is_net or (inner == "attn_qkv.weight" and shape[0] < queries_keys):
            return shape, put
        stored = (shape[0], shape[-1]) if inner == "ssm_conv1d.weight" else shape
        return stored, changed(change)


class Experts(Dense):
    name = "qwen35moe"
    architecture = gguf.MODEL_ARCH.QWEN35MOE
    config, model = Qwen3_5MoeTextConfig, Qwen3_5MoeForCausalLM
    settings = dict(Dense.settings, num_hidden_layers=2,
                    layer_types=["linear_attention", "full_attention"], num_attention_heads=2, num_key_value_heads=1, num_experts=4,
                    num_experts_per_tok=2, moe_intermediate_size=32,
                    shared_expert_intermediate_size=32, linear_num_key_heads=1,
                    linear_num_value_heads=2)

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_expert_count(cfg.num_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(cfg.shared_expert_intermediate_size)

    def tensors(self, model):
        return stacked_experts(super().tensors(model))


class Next(Experts):
    name = "qwen3next"
    architecture = gguf.MODEL_ARCH.QWEN3NEXT
    config, model = Qwen3NextConfig, Qwen3NextForCausalLM
    settings = dict(Experts.settings, linear_num_key_heads=2, linear_num_value_heads=4,
                    linear_key_head_dim=16, linear_value_head_dim=16, norm_topk_prob=True,
                    decoder_sparse_step=1, mlp_only_layers=[])
    tiled = False

    def tensors(self, model):
        cfg = model.config
        keys, values = cfg.linear_key_head_dim, cfg.linear_value_head_dim
        groups = cfg.linear_num_key_heads
        each = cfg.linear_num_value_heads // groups * values
        for name, shape, put in super().tensors(model):
            if not name.endswith("attn_qkvz.weight"):
                yield name, shape, put
                continue
            # By heads of keys there, by kinds in files.
            whole = put.__self__
            parts = [keys, keys, each, each]

            def put_kinds(values, kinds, whole=whole):
                rows = whole.view(groups, sum(parts), -1)
                starts = np.cumsum([0, *parts])
                for kind in kinds:
                    count = groups * parts[kind]
                    own, values = values[:count], values[count:]
                    rows[:, starts[kind]:starts[kind + 1]] = own.reshape(groups, parts[kind], -1)

            qkv = groups * (2 * keys + each)
            yield (name.replace("qkvz", "qkv"), (qkv, shape[1]),
                   lambda v, put_kinds=put_kinds: put_kinds(v, [0, 1, 2]))
            yield (name.replace("qkvz", "gate"), (groups * each, shape[1]),
                   lambda v, put_kinds=put_kinds: put_kinds(v, [3]))


NETS["in_proj_qkvz.weight"] = "attn_qkvz.weight"
CASES = [Dense, Experts, Next]
