"""The names that nanoGPT, litgpt, transformers, llama.cpp and others use, and gptcli's names.

Names of options and keys are written here without dashes at the beginning, in lower case, and with
`_` instead of `-`: max_new_tokens stands for `--max_new_tokens` and `--max-new-tokens`. Names of
commands keep their dashes. Each row of a table has gptcli's form, a colon, and the other names for
it. An indented line continues the row above it. To let the hints know one more spelling, add it to
a row.
"""

from __future__ import annotations

import re

_KEYS = """
data.val_fraction: val_ratio validation_split validation_fraction val_size test_size
tokenizer.kind: tokenizer_type tokenization tokenizer_kind
tokenizer.vocab_size: n_vocab vocab vocabulary_size num_merges
model.arch: architecture
model.n_layer: n_layers num_layers layers num_layer layer depth num_hidden_layers hidden_layers
    n_blocks num_blocks blocks decoder_layers
model.n_head: n_heads num_heads heads num_head head num_attention_heads attention_heads nhead
    nheads
model.n_embd: n_embed n_emb embd n_embedding d_model dmodel dim model_dim dim_model hidden_size
    hidden_dim embed_dim emb_dim embedding_dim embedding_size embed_size emb_size n_hidden width
    rnn_size
model.block_size: context context_length context_size context_window context_len ctx ctx_len
    ctx_size n_ctx n_positions seq_len seq_length sequence_len sequence_length max_seq_len
    max_seq_length max_sequence_length max_position_embeddings block_len window cutoff_len c
model.dropout: drop dropout_rate drop_rate p_dropout dropout_p resid_pdrop attn_pdrop embd_pdrop
    attn_dropout attention_dropout resid_dropout
model.bias: use_bias qkv_bias biases
train.max_steps: steps step max_iters max_iter iters iterations iteration max_iterations
    num_iterations num_iters n_iters niter num_steps n_steps nsteps total_steps max_train_steps
    train_steps training_steps num_train_steps num_training_steps updates
train.batch_size: batch bs b n_batch batchsize micro_batch_size device_batch_size mini_batch_size
    minibatch_size train_batch_size per_device_train_batch_size per_device_batch_size
    global_batch_size
train.grad_accum: gradient_accumulation_steps gradient_accumulation grad_accumulation
    grad_accumulation_steps grad_accum_steps accumulation_steps accumulate_grad_batches
    gradient_accumulation_iters accum
train.optimizer: optim opt optimiser optimizer_type
train.learning_rate: lr max_lr peak_lr base_lr learn_rate learningrate init_lr initial_lr
train.warmup_steps: warmup warm_up warmup_iters lr_warmup lr_warmup_iters lr_warmup_steps
    num_warmup_steps warmup_iterations
train.decay_fraction: cooldown_fraction warmdown_ratio cooldown_frac decay_frac decay_ratio
train.weight_decay: wd l2
train.grad_clip: clip max_norm max_grad_norm clip_grad clip_norm grad_norm_clip grad_norm
    gradient_clip gradient_clip_val gradient_clipping clip_grad_norm
train.eval_every: eval_interval eval_freq eval_frequency eval_steps eval_step val_every
    val_interval val_loss_every evaluate_every validate_every validation_interval
    val_check_interval
train.checkpoint_every: save_every save_steps save_interval save_freq ckpt_every ckpt_interval
    checkpoint_interval checkpoint_freq checkpoint_steps saveevery save_checkpoint_every
train.keep_checkpoints: save_total_limit max_checkpoints keep_last num_checkpoints
train.sample_every: sample_interval sample_freq gen_every generate_every sample_steps gen_epochs
train.log_every: log_interval logging_steps logging_interval log_freq log_steps print_every
    print_interval print_freq
train.stop_at_val_loss: target_loss target_val_loss stop_loss stop_at_loss
train.patience: early_stopping early_stop early_stopping_patience
train.seed: random_seed rng_seed manual_seed random_state
train.lora: use_lora peft adapter adapters use_peft low_rank finetuning_type
train.lora.rank: lora_r lora_rank r lora_dim
train.lora.alpha: lora_alpha
train.lora.dropout: lora_dropout
train.lora.targets: target_modules lora_target_modules lora_targets lora_target
train.lora.embeddings: modules_to_save train_embeddings additional_trainable_params
run.device: accelerator device_type backend
run.dtype: precision mixed_precision amp_dtype torch_dtype data_type
run.compile: torch_compile compile_model use_compile
run.threads: num_threads n_threads nthreads cpu_threads thread workers num_workers j
run.loggers: logger report_to log_with log_to trackers tracker
"""
"""Config keys, and other names for them, which users write as options or as keys."""

_MODEL_OPTIONS = """
RUN: run out_dir output_dir checkpoint_dir checkpoint_path ckpt_dir ckpt_path model model_path
    model_name model_dir model_file model_name_or_path model_tag m run_name run_dir load load_dir
    load_from init_checkpoint pretrained weights base_model
--checkpoint VALUE: ckpt checkpoint_step step ckpt_step load_step iteration iter epoch_to_load g
--threads VALUE: num_threads n_threads nthreads cpu_threads workers num_workers threads_batch j
--dtype VALUE: precision torch_dtype mixed_precision quantize quantization data_type q
--device VALUE: accelerator device_type backend gpu_device
"""
"""Options of the commands that load a run, and other names for these options."""

_OPTIONS = {
    "": """
--version: v ver
""",
    "train": """
--out VALUE: out_dir output_dir output out_path output_path save_dir save_path save_to out_folder
    output_folder outdir o destination dest
--out runs/VALUE: name run_name model_name run_id exp_name experiment model_tag new_model_name
--resume: resume_from resume_from_checkpoint continue continue_from continue_training r
    resume_training auto_resume restore restore_from restart recover load load_checkpoint reload
--from VALUE: from_run from_pretrained finetune finetune_from fine_tune pretrained checkpoint_dir
    checkpoint_path init_checkpoint base_model model_name_or_path load_from init_weights weights
    warm_start ckpt ckpt_path checkpoint
--overwrite: overwrite_output_dir force_overwrite y yes replace clean restart_training fresh
--minutes VALUE: minute max_minutes time_limit max_time time budget duration
--dry-run: dry dryrun n_params estimate plan count_parameters summary print_model
CONFIG: config conf cfg config_file config_path config_name preset c yaml
TEXT: dataset data data_dir data_path dataset_path dataset_dir dataset_name train_file train_data
    training_file training_data train_path text text_file input input_file input_path input_bin
    corpus file files filename file_name source src txt d f i train_bin
""",
    "sample": """
--prompt VALUE: start text input input_text prompt_text prompt_string prefix seed_text query
    primetext prime start_text initial begin
--prompt-file VALUE: file prompts_file input_file start_file f
--max-new-tokens VALUE: n_predict predict num_predict num_tokens n_tokens max_tokens max_length
    max_len length len tokens max_new_token max_gen_len max_gen_toks num_chars max_gen max_seq_len
    max_seq_length generate_len sample_len sample_length num_steps steps l
--num-samples VALUE: num_return_sequences nsamples n_samples samples num number count batch_size
    n_sample num_sample num_generations best_of parallel b
--temperature 0: greedy argmax no_sample
--temperature VALUE: temp
--top-k VALUE: topk k
--top-p VALUE: topp nucleus nucleus_p
--min-p VALUE: minp
--repetition-penalty VALUE: repeat_penalty rep_pen rep_penalty penalty frequency_penalty
    presence_penalty repetition repeat_last_n
--stop VALUE: reverse_prompt stop_sequence stop_sequences stop_string stop_strings stop_token
    stop_words eos antiprompt truncate until r
--seed VALUE: random_seed rng_seed manual_seed s
--interactive: chat conversation cnv interactive_first repl conversational turns
--json: output_json json_output
"""
    + _MODEL_OPTIONS,
    "eval": """
--file VALUE: text text_file input input_file dataset data data_path test_file eval_file f
--context VALUE: ctx ctx_len ctx_size n_ctx context_length context_size block_size seq_len
    seq_length max_length max_seq_len max_seq_length c
--split VALUE: subset data_split part
"""
    + _MODEL_OPTIONS,
    "score": """
FILE: file text text_file input input_file f prompt_file
"""
    + _MODEL_OPTIONS,
    "bench": """
CONFIG: config conf cfg config_file config_path config_name preset c yaml m model
""",
    "tokenizer train": """
--out VALUE: out_dir output_dir output out_path output_path save_dir save_path save_to out_folder
    output_folder outdir o destination dest save model_prefix model
--vocab-size VALUE: n_vocab vocab vocabulary_size size num_tokens n_tokens v
--kind VALUE: type model_type tokenizer_type algorithm
TEXT: dataset data data_dir data_path dataset_path dataset_dir dataset_name train_file
    train_data training_file training_data train_path text text_file input input_file input_path
    input_bin corpus file files filename file_name source src txt d f i train_bin
""",
    "exercise": """
--out VALUE: out_dir output_dir output out_path output_path save_dir save_path save_to out_folder
    output_folder outdir o destination dest
--status VALUE: progress check dir folder
""",
}  # fmt: skip
"""Command -> gptcli's form of an option or argument, and other names for it.

The command "" is `gptcli` without a command. VALUE stands for the user's value. A form that is one
word in capitals, such as RUN, is an argument: the user writes the value without an option."""

FIXED = {
    "bf16": ("run.dtype", "bfloat16"),
    "bfloat16": ("run.dtype", "bfloat16"),
    "amp": ("run.dtype", "bfloat16"),
    "fp16": ("run.dtype", "float16"),
    "half": ("run.dtype", "float16"),
    "float16": ("run.dtype", "float16"),
    "fp32": ("run.dtype", "float32"),
    "float32": ("run.dtype", "float32"),
    "int8": ("run.dtype", "int8"),
    "load_in_8bit": ("run.dtype", "int8"),
    "gpu": ("run.device", "cuda"),
    "cuda": ("run.device", "cuda"),
    "use_cuda": ("run.device", "cuda"),
    "ngl": ("run.device", "cuda"),
    "n_gpu_layers": ("run.device", "cuda"),
    "gpu_layers": ("run.device", "cuda"),
    "mps": ("run.device", "mps"),
    "use_mps": ("run.device", "mps"),
    "cpu": ("run.device", "cpu"),
    "use_cpu": ("run.device", "cpu"),
    "no_cuda": ("run.device", "cpu"),
    "no_gpu": ("run.device", "cpu"),
    "no_compile": ("run.compile", "false"),
    "no_bias": ("model.bias", "false"),
}
"""The name of an option -> (the config key that it means, the value). The hints do not use a value
that the user gives, as in `-ngl 99`."""

VALUES = {
    "run.dtype": {
        "bf16": "bfloat16", "bf16-true": "bfloat16", "bf16-mixed": "bfloat16", "fp16": "float16",
        "half": "float16", "16": "float16", "16-true": "float16", "16-mixed": "float16",
        "fp32": "float32", "float": "float32", "32": "float32", "32-true": "float32",
    },
    "run.device": {"gpu": "cuda", "metal": "mps"},
    "tokenizer.kind": {"character": "char", "characters": "char", "bytes": "byte",
                       "subword": "bpe", "tiktoken": "gpt2"},
    "train.optimizer": {"adam": "adamw", "adamw_torch": "adamw"},
}  # fmt: skip
"""Config key -> another name for a value -> gptcli's name for that value."""

_SENTENCES = """
gptcli counts steps, not epochs: set train.max_steps=N, or the time with --minutes M; --dry-run
    prints how many epochs that makes, and train.max_epochs=E limits them: epochs epoch num_epochs
    n_epochs nepochs num_train_epochs train_epochs e
leave it out: gptcli keeps the best checkpoint and the newest ones: always_save_checkpoint
    save_best save_best_only save_checkpoint save_strategy save_last save_model save
metrics.jsonl in the run folder always holds the losses and the speed of the run; to log them
    elsewhere too, set run.loggers=wandb (or csv, tensorboard, trackio): wandb wandb_log
    wandb_project wandb_run_name wandb_entity tensorboard trackio csv logger_name log_dir
    logging_dir log_file use_wandb use_tensorboard
leave it out: an evaluation reads the whole validation split: eval_iters eval_iter max_eval_steps
    eval_batch_size per_device_eval_batch_size eval_tokens eval_batches max_eval_iters
leave it out: the learning rate falls to 0 over the last part of the steps, whose share is
    train.decay_fraction: decay_lr min_lr lr_decay_iters lr_scheduler lr_scheduler_type scheduler
    lr_decay lr_schedule final_lr min_learning_rate lr_decay_steps final_lr_frac
leave it out: gptcli fixes this number of the optimizer; `gptcli schema` lists the keys that you
    can set: beta1 beta2 betas adam_beta1 adam_beta2 eps epsilon adam_eps adam_epsilon momentum
leave it out; `gptcli train --devices N` trains in N processes, one for each GPU: nproc_per_node
    nnodes ddp devices num_gpus n_gpus num_nodes world_size local_rank fsdp deepspeed distributed
    gpus
leave it out: notes go to stderr, and `2> notes.txt` writes them to a file: quiet silent q
    verbose log_level debug_level no_progress progress
to evaluate a finished run: gptcli eval: eval_only evaluate_only do_eval
leave it out: `gptcli train` always trains: do_train mode task train_mode
"""
"""Names for which gptcli has no option and no key.

Each row has a hint for the user, then the names."""

_COMMANDS = """
sample: generate generation gen inference infer predict complete completion write run samples
    sampling inference.py sample.py generate.py
sample --interactive: talk repl interactive converse conversation
train: finetune fine-tune finetune_lora pretrain fit start train.py training new finetuning
train --resume: resume continue restart recover
eval: evaluate evaluation validate val test perplexity ppl eval.py loss
runs: list ls ps status history run-list models show-runs
bench: benchmark speed perf profile benchmarks
configs: config presets settings list-configs
exercise: exercises course courses lesson lessons exercise.py tutorial
check-attention: check verify
score: logprobs likelihood surprise
tokenizer encode: tokenize encode tokens
tokenizer decode: detokenize decode
tokenizer train: train-tokenizer train_tokenizer tok
schema: keys options docs reference
--version: version
"""
"""gptcli's commands, and other names for them."""


def _by_name(rows: str) -> dict[str, str]:
    """{other name: gptcli's form} for the rows of a table.

    If a name is in two rows, the first row wins."""
    found: dict[str, str] = {}
    for row in re.sub(r"\n +", " ", rows).strip().splitlines():
        form, _, names = row.rpartition(": ")
        for name in names.split():
            found.setdefault(name, form)
    return found


KEY_OF = _by_name(_KEYS)
"""{another name: the config key that it means}"""
FORM_OF = {command: _by_name(rows) for command, rows in _OPTIONS.items()}
"""{command: {another name: gptcli's form of the option or argument}}"""
SENTENCE_OF = _by_name(_SENTENCES)
"""{a name for which gptcli has no option and no key: a hint for the user}"""
COMMAND_OF = _by_name(_COMMANDS)
"""{another name: gptcli's command}"""


def normalised(name: str) -> str:
    """The name of an option or key as these tables write it: `--Top-K` -> top_k."""
    return name.lstrip("-").replace("-", "_").lower()
