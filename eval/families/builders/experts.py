"""Models that come with experts: four, two to a token (Qwen2-MoE: three, one to a token)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from eval.families.builders.base import FFN, HEAD, HIDDEN, LAYERS, Builder, config, decoder, gated, model
from eval.families.builders.images import IMAGE_TOKEN, PATCH_SIDE, VIDEO_TOKEN, VISION_END, VISION_START

_TWO = {"num_experts_per_tok": 2}
_FOUR = _TWO | {"num_experts": 4}
_LOCAL = _TWO | {"num_local_experts": 4}
# DeepSeek's multi-head latent attention, and its mixture: the first layer dense, a shared expert, groups of experts.
_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
_MLA |= {"v_head_dim": HEAD, "num_key_value_heads": 2}
_ROUTED = _TWO | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_GROUPS = {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True}
_ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1}
_DELTA = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": HEAD}
_DELTA |= {"linear_value_head_dim": HEAD, "linear_conv_kernel_dim": 2}
_JAMBA = {"expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
_JAMBA |= {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 1, "mamba_dt_rank": 4}


def _sized(name: str, *widths: str, **extra: Any) -> Builder:
    """`decoder` for configs that have further names (`widths`) for the width of their feed-forward networks."""

    def build(
        hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any
    ) -> PreTrainedModel:
        return decoder(name, **extra)(hidden, ffn, layers, seed, **dict.fromkeys(widths, ffn), **more)

    return build


def llama4(hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any) -> PreTrainedModel:
    """Llama 4: every other layer has experts, transposed, each of which is given all tokens times their weights."""
    own = _LOCAL | {"intermediate_size_mlp": ffn, "interleave_moe_layer_step": 2, "head_dim": HEAD}
    return model("Llama4ForCausalLM", config("Llama4Text", **(gated(hidden, ffn, layers) | own | more)), seed)


def qwen3_vl_moe(
    hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any
) -> PreTrainedModel:
    """Qwen3-VL-MoE: fused experts on disk too, beside a vision tower."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    own = _FOUR | {"moe_intermediate_size": ffn, "head_dim": HEAD, "rope_parameters": rope}
    tower = {"depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": hidden}
    tower |= {"patch_size": PATCH_SIDE // 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    made = config(
        "Qwen3VLMoe",
        vision_config=tower | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        text_config=gated(hidden, ffn, layers) | own | {"tie_word_embeddings": False} | more,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return model("Qwen3VLMoeForConditionalGeneration", made, seed)


EXPERTS: dict[str, Builder] = {
    "Mixtral": decoder("Mixtral", **_LOCAL),
    "Qwen2-MoE": _sized(
        "Qwen2Moe", "moe_intermediate_size", "shared_expert_intermediate_size", num_experts=3, num_experts_per_tok=1
    ),
    "Qwen3-MoE": _sized("Qwen3Moe", "moe_intermediate_size", **_FOUR, head_dim=HEAD),
    "OLMoE": decoder("Olmoe", **_FOUR),
    "DeepSeek-V2": _sized("DeepseekV2", "moe_intermediate_size", **_MLA, **_ROUTED, topk_method="greedy"),
    "DeepSeek-V3": _sized("DeepseekV3", "moe_intermediate_size", **_MLA, **_ROUTED, **_GROUPS),
    "GLM4-MoE": _sized("Glm4Moe", "moe_intermediate_size", **_ROUTED, **_GROUPS, head_dim=HEAD),
    "Ernie4.5-MoE": _sized("Ernie4_5_Moe", "moe_intermediate_size", **_ERNIE, head_dim=HEAD),
    "Qwen3-Next": _sized(
        "Qwen3Next",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        **_FOUR,
        **_DELTA,
        head_dim=HEAD,
        layer_types=["linear_attention", "full_attention"],
    ),
    "Qwen3.5-MoE": _sized(
        "Qwen3_5MoeText",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        kind="Qwen3_5MoeForCausalLM",
        **_FOUR,
        **_DELTA,
        head_dim=HEAD,
        layer_types=["linear_attention", "full_attention"],
    ),
    "GraniteMoe": decoder("GraniteMoe", **_LOCAL),
    "GraniteMoeShared": _sized("GraniteMoeShared", "shared_intermediate_size", **_LOCAL),
    "PhiMoE": decoder("Phimoe", **_LOCAL, head_dim=HEAD),
    "Jamba": decoder("Jamba", **_FOUR, **_JAMBA),
    "dots1": _sized("Dots1", "moe_intermediate_size", **_ROUTED, **_GROUPS, head_dim=HEAD),
    "MiniMax-M2": decoder("MiniMaxM2", **_LOCAL, head_dim=HEAD, rotary_dim=8),
    "LFM2-MoE": _sized(
        "Lfm2Moe", "moe_intermediate_size", **_FOUR, num_dense_layers=1, layer_types=["conv", "full_attention"]
    ),
    "Nemotron-H": _sized(
        "NemotronH",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        **_TWO,
        n_routed_experts=4,
        layers_block_type=["moe", "attention"],
        head_dim=HEAD,
    ),
    "DeepSeek-V4": _sized("DeepseekV4", "moe_intermediate_size", **_MLA, **_ROUTED),
    "Llama 4": llama4,
    "GPT-OSS": decoder("GptOss", **_LOCAL, head_dim=HEAD),
    "Qwen3-VL-MoE": qwen3_vl_moe,
}

# Stored as one tensor for all experts of an attention or of half a feed-forward network, called with sorted tokens.
REFUSED: dict[str, Builder] = {"JetMoE": decoder("JetMoe", **_LOCAL, kv_channels=HEAD)}
