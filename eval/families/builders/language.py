"""Language models, by what their decoder layers are like."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from eval.families.builders.base import (
    FFN,
    HEAD,
    HIDDEN,
    LAYERS,
    SPREAD,
    Builder,
    common,
    config,
    decoder,
    model,
    renamed,
)

# As the configs of the first generations of models name what `gated` holds.
_HEADS = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
_N = _HEADS | {"hidden_size": "n_embd", "max_position_embeddings": "n_positions"}
_N |= {"intermediate_size": "n_inner", "initializer_range": "initializer_range"}
_BLOOM = _HEADS | {"hidden_size": "hidden_size", "initializer_range": "initializer_range"}
_FALCON = {name: name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")}
_MPT = {"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_size": "d_model"}
_MPT |= {"max_position_embeddings": "max_seq_len", "initializer_range": "initializer_range"}
_NEO = {name: name for name in ("hidden_size", "intermediate_size", "max_position_embeddings", "initializer_range")}
_NEO |= {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
_XGLM = {"num_hidden_layers": "num_layers", "num_attention_heads": "attention_heads", "hidden_size": "d_model"}
_XGLM |= {"intermediate_size": "ffn_dim", "initializer_range": "init_std"}
_XGLM |= {"max_position_embeddings": "max_position_embeddings"}

_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SSM = {"mamba_n_heads": 8, "mamba_d_head": 4, "mamba_d_state": 8, "mamba_d_conv": 2, "mamba_expand": 1}
_SSM |= {"mamba_chunk_size": 8}
_DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 8}
_DELTA |= {"linear_value_head_dim": 8, "linear_conv_kernel_dim": 2}
_ZAMBA = {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_expand": 1, "chunk_size": 8, "adapter_rank": 4}
_GEMMA4: dict[str, Any] = {"head_dim": HEAD, "global_head_dim": HEAD, "sliding_window": 8, "num_kv_shared_layers": 0}
_GEMMA4 |= {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 96}
_GEMMA4 |= {"layer_types": ["sliding_attention", "full_attention"]}
# The gates of its first layers keep their largest values only, as in the published models.
_GEMMA3N: dict[str, Any] = {"activation_sparsity_pattern": [0.95, 0.0], "num_kv_shared_layers": 0, "laurel_rank": 4}
_GEMMA3N |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96, "altup_num_inputs": 2}


def opt(hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any) -> PreTrainedModel:
    """OPT: fc1 / fc2 with bias lie in the decoder layer itself, there is no feed-forward module."""
    own: dict[str, Any] = {"ffn_dim": ffn, "word_embed_proj_dim": hidden, "init_std": SPREAD, "dropout": 0.0}
    return model("OPTForCausalLM", config("OPT", **(common(hidden, layers) | own | more)), seed)


gemma3n = decoder("Gemma3nText", "Gemma3nForCausalLM", head_dim=HEAD, sliding_window=8, **_GEMMA3N)

# Gate and up beside each other, down below them.
GATED: dict[str, Builder] = {
    "Llama": decoder("Llama"),
    "Mistral": decoder("Mistral"),
    "Ministral": decoder("Ministral", head_dim=HEAD),
    "Qwen2": decoder("Qwen2", tie_word_embeddings=True),
    "Qwen3": decoder("Qwen3", head_dim=HEAD),
    "Gemma": decoder("Gemma", head_dim=HEAD),
    "StableLM": decoder("StableLm"),
    "Granite": decoder("Granite", residual_multiplier=0.5, embedding_multiplier=2.0),
    "Helium": decoder("Helium", head_dim=HEAD),
    "SmolLM3": decoder("SmolLM3"),
    "ERNIE 4.5": decoder("Ernie4_5", head_dim=HEAD),
    "Seed-OSS": decoder("SeedOss", head_dim=HEAD, residual_dropout=0.1),
    "HunYuan": decoder("HunYuanDenseV1", head_dim=HEAD),
    "OLMo": decoder("Olmo"),
    "Ministral 3": decoder("Ministral3", head_dim=HEAD),
    "CWM": decoder("Cwm", head_dim=HEAD, sliding_window=8),
    "DiffLlama": decoder("DiffLlama", head_dim=HEAD, num_key_value_heads=2),
}

# Norms after the blocks, or on both sides of them.
POST_NORM: dict[str, Builder] = {
    "Gemma 2": decoder("Gemma2", head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=8),
    "Gemma 3": decoder("Gemma3Text", "Gemma3ForCausalLM", head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=8),
    "Gemma 4": decoder("Gemma4Text", "Gemma4ForCausalLM", **_GEMMA4),
    "VaultGemma": decoder("VaultGemma", head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=8),
    "OLMo 2": decoder("Olmo2"),
    "OLMo 3": decoder("Olmo3", sliding_window=8),
    "EXAONE 4": decoder("Exaone4", sliding_window=8, head_dim=HEAD),
}

# Gate and up in one linear layer.
FUSED: dict[str, Builder] = {
    "Phi-3": decoder("Phi3"),
    "GLM": decoder("Glm", head_dim=HEAD),
    "GLM-4": decoder("Glm4", head_dim=HEAD),
}

# Attention and feed-forward read the same input.
PARALLEL: dict[str, Builder] = {
    "GPT-NeoX": decoder("GPTNeoX"),
    "GPT-J": renamed("GPTJ", "GPTJForCausalLM", _N, rotary_dim=8, **_NO_DROPOUT),
    "CodeGen": renamed("CodeGen", "CodeGenForCausalLM", _N, rotary_dim=4, n_head=4, **_NO_DROPOUT),
    "Falcon": renamed("Falcon", "FalconForCausalLM", _FALCON, parallel_attn=True),
    "Phi": decoder("Phi", rope_parameters=_ROPE | {"partial_rotary_factor": 1.0}),
    "Cohere": decoder("Cohere"),
    "Cohere 2": decoder("Cohere2", head_dim=HEAD, sliding_window=8),
}

# Two linear layers and an activation, in a module.
PLAIN: dict[str, Builder] = {
    "GPT-2": renamed("GPT2", "GPT2LMHeadModel", _N, initializer_range=0.02, **_NO_DROPOUT),
    "GPT-BigCode": renamed("GPTBigCode", "GPTBigCodeForCausalLM", _N, **_NO_DROPOUT),
    "GPT-Neo": renamed("GPTNeo", "GPTNeoForCausalLM", _NEO, attention_types=[[["global", "local"], 1]], window_size=8),
    "StarCoder2": decoder("Starcoder2"),
    "Nemotron": decoder("Nemotron", head_dim=HEAD),
    "Arcee": decoder("Arcee"),
    "Persimmon": decoder("Persimmon"),
    "BLOOM": renamed("Bloom", "BloomForCausalLM", _BLOOM),
    "MPT": renamed("Mpt", "MptForCausalLM", _MPT),
    "Apertus": decoder("Apertus"),
    "NanoChat": decoder("NanoChat", head_dim=HEAD),
}

# The same in the decoder layer itself.
INLINE: dict[str, Builder] = {
    "OPT": opt,
    "XGLM": renamed("XGLM", "XGLMForCausalLM", _XGLM, dropout=0.0, attention_dropout=0.0),
    "BioGPT": decoder("BioGpt", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
}

# Layers that mix tokens by convolutions or state spaces, some of which have no feed-forward.
HYBRID: dict[str, Builder] = {
    "LFM2": decoder("Lfm2", block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]),
    "Falcon-H1": decoder("FalconH1", mlp_multipliers=[0.875, 0.5859375], mamba_d_ssm=32, **_SSM),
    "Bamba": decoder("Bamba", attn_layer_indices=[1], **_SSM),
    "RecurrentGemma": decoder("RecurrentGemma", block_types=["recurrent", "attention"], lru_width=HIDDEN),
    "Qwen3.5": decoder(
        "Qwen3_5Text", "Qwen3_5ForCausalLM", head_dim=HEAD, layer_types=["linear_attention", "full_attention"], **_DELTA
    ),
    "OLMo hybrid": decoder("OlmoHybrid", layer_types=["linear_attention", "full_attention"], **_DELTA),
    "Zamba2": decoder("Zamba2", layers_block_type=["mamba", "hybrid"], num_key_value_heads=2, **_ZAMBA),
    "Mamba": decoder("Mamba", state_size=4),
}

# Something between the linear layers: a norm; gates of which only the largest are kept.
ODD_ONES: dict[str, Builder] = {
    "BitNet": decoder("BitNet"),
    "Gemma 3n": gemma3n,
    "Gemma 3n, layers without sparsity": gemma3n,
}

LANGUAGE = GATED | POST_NORM | FUSED | PARALLEL | PLAIN | INLINE | HYBRID | ODD_ONES
