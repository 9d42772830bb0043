"""What the names of settings mean: `d_model`, `embed_dim` and `hidden_size` all mean n_embd."""

from __future__ import annotations

import re

N_EMBD, N_HEAD, N_KV_HEAD, HEAD_DIM = "n_embd", "n_head", "n_kv_head", "head_dim"
BLOCK_SIZE, DROPOUT, BIAS, CAUSAL = "block_size", "dropout", "bias", "causal"
VOCAB_SIZE, N_LAYER, LAYER_INDEX, BATCH_SIZE = "vocab_size", "n_layer", "layer_index", "batch_size"
HIDDEN_DIM, DEVICE, DTYPE, EPS, INIT_STD = "hidden_dim", "device", "dtype", "eps", "init_std"
ROPE_THETA, SWITCH, BATCH_FIRST = "rope_theta", "switch", "batch_first"

_EXACT = {
    N_EMBD: (
        "n_embd d_model d_in d_out d_emb embed_dim emb_dim embedding_dim embedding_size "
        "embed_size emb_size hidden_size n_embed n_emb n_hidden num_hiddens dim dim_model "
        "model_dim d_embd d_embed model_size in_dim out_dim in_features out_features input_dim "
        "output_dim input_size output_size in_channels out_channels channels n_channels "
        "num_channels n_state width n_units features embeddim embedding embd_dim embd_size "
        "inner_dim query_dim context_dim d_input d_output input_embedding_dim c d embed "
        "k_dim_total d_out_kq d_out_v d_out_qk dmodel hidden hidden_dim hidden_dims "
        "hidden_channels dim_in dim_out token_dim emb embd dims hid hid_dim n_dim ndim e nd "
        "feat_dim feature_dim dim_embed dim_emb dim_embedding size n_features nx nf units n_unit"
    ),
    N_HEAD: (
        "n_head n_heads num_heads num_head nhead heads head h num_attention_heads n_attn_heads "
        "number_of_heads nheads head_num heads_num num_attn_heads attention_heads "
        "n_attention_heads head_count heads_count nh numheads attn_heads num_q_heads n_q_heads "
        "num_query_heads"
    ),
    N_KV_HEAD: (
        "n_kv_head n_kv_heads num_kv_heads num_key_value_heads kv_heads num_kv_groups n_kv_groups "
        "num_query_groups n_query_groups n_kv"
    ),
    HEAD_DIM: (
        "head_dim head_size d_head dim_head dim_per_head size_per_head d_k d_v d_q d_kq d_qk dk "
        "dv dhead head_width qk_dim v_dim kdim vdim key_dim value_dim attention_head_size "
        "head_features d_key d_value qkv_dim query_key_dim head_hidden_dim dims_per_head"
    ),
    BLOCK_SIZE: (
        "block_size context_length ctx_len max_seq_len seq_len max_len n_ctx n_positions "
        "max_position_embeddings sequence_len sequence_length context_size context_len max_length "
        "max_seq_length seq_length max_sequence_length window window_size context ctx "
        "context_window max_context_length max_block_size max_positions maxlen num_positions t "
        "n_tokens num_tokens max_t max_tokens block max_context seqlen block_len max_seqlen "
        "ctx_size ctx_length max_context_len max_time n_context"
    ),
    DROPOUT: (
        "dropout drop p dropout_p dropout_rate drop_rate attn_dropout attn_pdrop resid_pdrop "
        "resid_dropout dropout_prob attention_dropout p_dropout pdrop "
        "attention_probs_dropout_prob hidden_dropout_prob attn_drop proj_drop resid_drop "
        "residual_dropout embd_pdrop p_drop dropout_ratio attn_p proj_p drop_prob drop_p"
    ),
    BIAS: (
        "bias qkv_bias use_bias attn_bias attention_bias add_bias out_bias proj_bias has_bias b "
        "qkvbias bias_qkv linear_bias add_qkv_bias"
    ),
    CAUSAL: (
        "causal is_causal mask masked use_mask use_causal_mask causal_mask autoregressive decoder "
        "is_decoder"
    ),
    VOCAB_SIZE: "vocab_size n_vocab d_vocab vocab num_tokens_vocab padded_vocab_size",
    N_LAYER: "n_layer n_layers num_layers num_hidden_layers depth n_blocks num_blocks",
    LAYER_INDEX: "layer_idx layer_id layer_index layer layer_num idx layer_number block_idx",
    BATCH_SIZE: "batch_size batch bs micro_batch_size",
    HIDDEN_DIM: "d_ff intermediate_size ffn_dim d_mlp ff_dim dim_feedforward d_hidden",
    DEVICE: "device",
    DTYPE: "dtype torch_dtype param_dtype",
    EPS: "eps norm_eps layer_norm_eps rms_norm_eps layer_norm_epsilon",
    INIT_STD: "init_range initializer_range init_std std init_scale",
    ROPE_THETA: "rope_theta theta rope_base rotary_base",
    BATCH_FIRST: "batch_first",
    SWITCH: (
        "flash use_flash use_flash_attention flash_attention use_flash_attn use_sdpa use_rope "
        "rope use_rotary rotary use_qk_norm qk_norm debug verbose use_cache cache kv_cache "
        "return_weights use_kv_cache output_attentions cross_attention is_cross_attention"
    ),
}  # fmt: skip
_MEANING = {
    re.sub(r"[^a-z0-9]", "", word): meaning
    for meaning, words in _EXACT.items()
    for word in words.split()
}
# For names that are not in the lists above. The first pattern that fits decides, so `dropout_bias`
# means dropout.
_PATTERNS = (
    (r"^(use|enable|with|apply|return|output)(?!d)", SWITCH),
    (r"drop", DROPOUT),
    (r"bias", BIAS),
    (r"causal", CAUSAL),
    (r"vocab", VOCAB_SIZE),
    (r"(kv|keyvalue).*(head|group)", N_KV_HEAD),
    (r"(dim|size|width|channels).*head|head.*(dim|size|width|channels)", HEAD_DIM),
    (r"head", N_HEAD),
    (r"layer.*(id|idx|index)", LAYER_INDEX),
    (r"layer", N_LAYER),
    (r"(seq|context|ctx|block|position|window).*(len|size|window|max|num|n)", BLOCK_SIZE),
    (r"(max|num|n).*(seq|context|ctx|block|position)", BLOCK_SIZE),
    (r"(emb|hidden|model).*(dim|size|d|n|width|features|channels)", N_EMBD),
    (r"(dim|size|d|n|num|width).*(emb|model|hidden)", N_EMBD),
    (r"batch", BATCH_SIZE),
)  # fmt: skip
_CONFIG = re.compile(
    r"_*(gpt|model|transformer|attn|attention)?_*"
    r"(config|configuration|cfg|conf|args|params|hparams|hps?|settings|options|opts?|hyperparams|"
    r"hyperparameters|parameters|c|model_args|modelargs)$",
    re.IGNORECASE,
)


def meaning_of(name: str) -> str | None:
    """The meaning of a setting's name, such as "n_embd" for `d_model`; None if it is unknown."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in _MEANING:
        return _MEANING[plain]
    if len(plain) < 4:
        return None
    return next((meaning for pattern, meaning in _PATTERNS if re.search(pattern, plain)), None)


def is_exact(name: str) -> bool:
    """Whether `name` is in the lists of known names. The meaning of any other name is a guess."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) in _MEANING


def names_config(name: str) -> bool:
    """Whether the name of an argument means a config: an object with all settings."""
    return _CONFIG.match(name) is not None
