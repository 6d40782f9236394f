"""What other trainers call things, and what they are called here, or why there is no such thing.

A table per kind of name: settings and arguments of the policy's trainers, settings and arguments of the reward trainer.
They hold what TRL's GRPO, RLOO and PPO trainers of today and before, its reward trainer, and older releases of
transformers call what has another name here; a test goes through the fields of the installed TRL. A text that begins
with "none: " says why there is nothing of the kind; any other begins with the name here.
"""

from __future__ import annotations

from collections.abc import Mapping

_SAMPLER = "none: truncated sampling would give tokens whose log-probs are not the sampler's"
_DECODING = "none: responses are sampled by a decoding loop of our own, with the cache that the model makes"
_ENGINE = (
    "none: responses are sampled in the training process itself; an engine beside it is an object for `generator=`"
)
_ENTROPY = "none: the weight of the entropy bonus stays what `ent_coef` says"
_FIXED_REFERENCE = "none: the reference stays what it is at the start; `ref_model` gives another one"
_LOSSES = "none: it belongs to a loss that is not here; `algorithm` names those that are"
_LAUNCHER = "none: the launcher says how many processes there are"
_PRODUCT = "none: it follows from rollout_batch_size, num_mini_batches and gradient_accumulation_steps"
_TEXT_ONLY = "none: prompts and responses are text"
_LOADED = "none: load the model with them yourself, and pass it as `model`"
_NO_CODE = "none: code from a model's repository is never run; write the model's class in a package that is installed"
_TRACKERS = "none: `report_to` names the trackers, which have settings of their own"
_TOKENISED = "none: the dataset is tokenised once, when the trainer is made"
_DROPOUT_OFF = "none: dropout is always off, or ratios would not be 1 and the KL not 0 at the start"

# Fields of TrainingArguments of transformers 4 that are gone.
_OF_TRANSFORMERS_4 = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of the run)",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id, as ORGANISATION/NAME",
    "push_to_hub_token": "hub_token",
    "adafactor": "optim='adafactor'",
    "overwrite_output_dir": "none: nothing is ever overwritten; choose another `output_dir`",
    "save_safetensors": "none: weights are always saved as safetensors",
    "logging_dir": "none: the tracker decides (TENSORBOARD_LOGGING_DIR in the environment)",
    "group_by_length": "train_sampling_strategy='group_by_length'",
    "torchdynamo": "torch_compile_backend",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    **dict.fromkeys(("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), "fsdp_config"),
    **dict.fromkeys(
        ("half_precision_backend", "fp16_backend", "fp16_opt_level"), "none: bf16 and fp16 are torch's own autocast"
    ),
    **dict.fromkeys(("use_mps_device", "tpu_num_cores"), "none: the device that is there is found, unless `use_cpu`"),
}


def _arguments(names: str) -> dict[str, str]:
    """What is an argument of the trainer, where somebody passes it to the settings."""
    return {name: f"the trainer's `{name}`" for name in names.split()}


_OF_EVERY_TRAINER = _arguments(
    "model train_dataset eval_dataset processing_class callbacks optimizers peft_config quantization_config"
)

# Settings of TRL's online trainers, and of its PPO ≤ 1.12 and ≤ 0.11.
POLICY_SETTINGS: Mapping[str, str] = (
    _OF_TRANSFORMERS_4
    | _OF_EVERY_TRAINER
    | {
        **_arguments("reward_funcs reward_processing_classes value_model ref_model"),
        "group_by_length": "none: micro-batches are sorted by length as it is",
        # Rollouts.
        "response_length": "max_completion_length",
        "stop_token": "stop_token_id",
        "total_episodes": "max_steps (optimiser steps) or num_train_epochs (passes over the prompts)",
        "num_total_batches": "max_steps (optimiser steps) or num_train_epochs (passes over the prompts)",
        "steps": "max_steps (optimiser steps) or num_train_epochs (passes over the prompts)",
        "generation_batch_size": "rollout_batch_size",
        "batch_size": "rollout_batch_size",
        "steps_per_generation": "num_mini_batches (it counted micro-batches, gradient_accumulation_steps × as many)",
        "rloo_k": "num_generations",
        "num_generations_eval": "none: an evaluation samples one response per prompt, always with the same draws",
        "local_rollout_forward_batch_size": "max_tokens_per_micro_batch",
        "forward_batch_size": "max_tokens_per_micro_batch",
        "num_sample_generations": "eval_steps, with an eval_dataset",
        "shuffle_dataset": "none: prompts are always shuffled, by `seed`",
        "pad_to_multiple_of": "none: rows are sorted by length and padded to the longest of a micro-batch",
        "chat_template_kwargs": "none: it is a column of the dataset, row by row",
        "max_tool_calling_iterations": "none: a response is one turn, and no tools are called",
        **dict.fromkeys(("top_k", "top_p", "min_p", "repetition_penalty", "generation_kwargs"), _SAMPLER),
        **dict.fromkeys(("cache_implementation", "use_transformers_paged"), _DECODING),
        **dict.fromkeys(("use_transformers_continuous_batching", "transformers_continuous_batching_config"), _DECODING),
        "use_vllm": _ENGINE,
        **{
            f"vllm_{name}": _ENGINE
            for name in (
                "mode",
                "model_impl",
                "enable_sleep_mode",
                "structured_outputs_regex",
                "guided_decoding_regex",
                "server_base_url",
                "server_host",
                "server_port",
                "server_timeout",
                "group_port",
                "device",
                "dtype",
                "gpu_memory_utilization",
                "max_model_length",
                "max_model_len",
                "tensor_parallel_size",
                "enable_prefix_caching",
                "importance_sampling_correction",
                "importance_sampling_mode",
                "importance_sampling_cap",
                "importance_sampling_clip_max",
                "importance_sampling_clip_min",
            )
        },
        "ds3_gather_for_generation": "none: parameters are gathered where they are needed",
        # Rewards and KL.
        "beta": "kl_coef (there it was 0 or a KL in the loss; here the KL is in the reward unless kl_in='loss')",
        "init_kl_coef": "kl_coef",
        "kl_penalty": "kl_estimator (k1 was 'kl', k2 was 'mse')",
        "adap_kl_ctrl": "kl_target (nats per response; β adapts where it is set)",
        "target": "kl_target",
        "horizon": "kl_horizon",
        "early_stopping": "target_kl (nats per token; the policy rests where it is passed)",
        "use_bias_correction_kl": "none: the KL in the reward has the whole gradient as it is",
        "reward_clip_range": "reward_clip (one number c, for ±c)",
        "score_clip": "reward_clip",
        "normalize_reward": "normalize_scores",
        "use_score_scaling": "normalize_scores",
        "use_score_norm": "normalize_scores",
        "token_level_kl": "none: the KL is a reward of every token",
        "multi_objective_aggregation": "none: rewards are summed by `reward_weights`, then normalised",
        "mask_truncated_completions": "none: missing_eos_penalty lowers the score of a cut-off response, and "
        "bootstrap_truncated lets the critic say what would have followed",
        "reward_model_path": "the trainer's `reward_funcs`",
        "reward_model": "the trainer's `reward_funcs`",
        "sft_model_path": "the trainer's `model`",
        "model_name": "the trainer's `model`",
        "query_dataset": "the trainer's `train_dataset`",
        "model_adapter_name": "none: the policy's adapter is the one that `model` has or `peft_config` makes",
        "ref_adapter_name": "none: the reference is the policy as it was at the start; `ref_model` gives another one",
        **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _FIXED_REFERENCE),
        # The update.
        "num_iterations": "num_ppo_epochs",
        "ppo_epochs": "num_ppo_epochs",
        "epsilon": "clip_range",
        "epsilon_high": "clip_range_high",
        "cliprange": "clip_range",
        "cliprange_value": "clip_range_value",
        "delta": "dual_clip",
        "lam": "gae_lambda",
        "entropy_coef": "ent_coef",
        "scale_rewards": "algorithm ('grpo' divides by the spread of a group, 'rloo' does not), or whiten_advantages",
        "normalize_advantages": "whiten_advantages",
        "normalize_advantage": "whiten_advantages",
        "loss_type": "algorithm, and loss_normalization ('tokens' is 'dapo'; 'episodes' is 'dr_grpo' up to a factor)",
        "importance_sampling_level": "algorithm (ratios are per token, in 'importance_weighted_sequence' per response)",
        "ratio_threshold": "none: updates with numbers that are not finite are left out; target_kl bounds the others",
        "off_policy_mask_threshold": "none: target_kl lets the policy rest where it has moved too far",
        **dict.fromkeys(
            ("use_adaptive_entropy", "entropy_target", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"),
            _ENTROPY,
        ),
        "top_entropy_quantile": "none: every token of a response counts",
        **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), _LOSSES),
        **dict.fromkeys(("vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos"), _LOSSES),
        "router_aux_loss_coef": "none: the objective is SPEC's, without a loss for the router's balance",
        "cast_lm_head_to_fp32": "none: log-probs are computed in float32 as it is",
        "disable_dropout": _DROPOUT_OFF,
        "use_liger_loss": "none: the vocabulary head is computed in chunks as it is",
        **dict.fromkeys(("mini_batch_size", "local_mini_batch_size", "local_batch_size", "micro_batch_size"), _PRODUCT),
        **dict.fromkeys(("backward_batch_size", "global_backward_batch_size", "global_batch_size"), _PRODUCT),
        "world_size": _LAUNCHER,
        # Models, logs.
        "model_init_kwargs": _LOADED,
        "trust_remote_code": _NO_CODE,
        **dict.fromkeys(("is_peft_model", "is_encoder_decoder"), "none: the model itself says so"),
        **dict.fromkeys(("optimize_cuda_cache", "optimize_device_cache"), "torch_empty_cache_steps"),
        "num_completions_to_print": "none: a few responses of each rollout are kept and some are shown",
        **dict.fromkeys(("log_unique_prompts", "wandb_log_unique_prompts"), "none: every sample that is kept is shown"),
        "log_completions_hub_repo": "none: completions.jsonl goes to the Hub with the run (`push_to_hub`)",
        "log_multimodal": _TEXT_ONLY,
        "log_with": "report_to",
        "exp_name": "run_name",
        "task_name": "run_name",
        "tracker_project_name": "project",
        **dict.fromkeys(("tracker_kwargs", "accelerator_kwargs", "project_kwargs"), _TRACKERS),
        "push_to_hub_if_best_kwargs": "hub_model_id, with push_to_hub and load_best_model_at_end",
        "compare_steps": "none: an eval_dataset is scored every eval_steps",
        "dataset_num_proc": _TOKENISED,
    }
)

# Settings of TRL's RewardTrainer.
REWARD_SETTINGS: Mapping[str, str] = (
    _OF_TRANSFORMERS_4
    | _OF_EVERY_TRAINER
    | {
        "disable_dropout": "none: a reward model trains with the dropout of its own configuration; set it there",
        "dataset_num_proc": _TOKENISED,
        "pad_to_multiple_of": "none: pairs of similar length share a batch, padded to its longest",
        "chat_template_path": "none: set `chat_template` of the tokenizer, and pass that as `processing_class`",
        "eos_token": "none: set `eos_token` of the tokenizer, and pass that as `processing_class`",
        "pad_token": "none: set `pad_token` of the tokenizer, and pass that as `processing_class`",
        "model_init_kwargs": _LOADED,
        "trust_remote_code": _NO_CODE,
        "activation_offloading": "none: gradient_checkpointing saves the memory of activations",
        "max_prompt_length": "max_length (of prompt and response together; longer pairs are left out)",
        "beta": "none: pairs are compared by a plain log-odds; `label_smoothing` bounds the scores",
        "loss_type": "none: the loss is Bradley–Terry's, with `label_smoothing` and margins",
    }
)

_STOCK = "none: the stock Trainer's hook has no place in a rollout"
_ONE_TURN = "none: a response is one turn of text; a reward function may run whatever it likes on it"
# Arguments of TRL's trainers and of transformers.Trainer that those of the policy do not take.
POLICY_ARGUMENTS: Mapping[str, str] = {
    "reward_model": "reward_funcs",
    "reward_func": "reward_funcs",
    "reward_fn": "reward_funcs",
    "reward_tokenizer": "reward_processing_classes",
    "reward_processing_class": "reward_processing_classes",
    "tokenizer": "processing_class",
    "config": "args",
    "policy": "model",
    "ref_policy": "ref_model",
    "reference_model": "ref_model",
    "dataset": "train_dataset",
    "critic": "value_model",
    "optimizer": "optimizers (a pair: optimiser and schedule)",
    "lr_scheduler": "optimizers (a pair: optimiser and schedule)",
    "model_init": "none: build the model yourself, and pass it as `model`",
    "num_shared_layers": "none: the reference is a frozen copy, or the policy with its adapter off",
    "tools": "none: a response is one turn of text; to show tools to the template, give the dataset a column `tools`",
    "rollout_func": "generator (an object with generate(model, prompts, address); a response is one turn of text)",
    "environment_factory": _ONE_TURN,
    "data_collator": "none: prompts are batched by the trainer",
    "training_data_collator": "none: prompts are batched by the trainer",
    "compute_metrics": _STOCK + "; reward functions log numbers by `log_metric`",
    "preprocess_logits_for_metrics": _STOCK,
    "compute_loss_func": _STOCK + "; a new loss is a row of POLICY_LOSSES",
}
# The same of the reward trainer.
REWARD_ARGUMENTS: Mapping[str, str] = {
    "tokenizer": "processing_class",
    "config": "args",
    "dataset": "train_dataset",
    "max_length": "args.max_length",
    "model_init": "none: build the model yourself, and pass it as `model`",
    "data_collator": "none: pairs are batched by the trainer, both sides in one forward",
    "compute_metrics": "none: the metrics are those of pairs and scores",
    "preprocess_logits_for_metrics": "none: the metrics are those of pairs and scores",
    "compute_loss_func": "none: the loss is that of pairs (SPEC §2.1)",
}
