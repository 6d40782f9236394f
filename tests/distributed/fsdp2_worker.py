"""Two processes with torch's own FSDP 2 on a mesh of CPUs, where accelerate would run plain DDP.

python -m torch.distributed.run --nproc_per_node 2 tests/distributed/fsdp2_worker.py FOLDER KIND=MODEL …
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from hfrlhf.data.prompts import prepare_prompts, prompt_batch
from hfrlhf.experience import Rollout
from hfrlhf.models.adapters import with_adapter
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.loading import load_policy, load_value_model
from hfrlhf.models.sharding import in_pieces
from hfrlhf.models.strategies.fully_sharded import unsharded
from hfrlhf.rollout.generation import TransformersGenerator
from tests.trainers.helpers import prompts


def build(model: str, kind: str) -> ActorCritic:
    """Policy and critic, with a head that is not 0: all weights, or adapters in float32 on a base in bfloat16."""
    options = {"dtype": torch.bfloat16} if kind == "lora-bf16" else {}
    policy, critic = load_policy(model, **options), "V"
    if kind.startswith("lora"):
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights="gaussian")
        policy = with_adapter(policy, lora)
        critic = load_value_model("adapter", policy)
    built = ActorCritic(policy, critic)
    with torch.no_grad():
        for name, parameter in sorted(built.named_parameters()):
            if parameter.requires_grad:
                noise = torch.Generator().manual_seed(len(name))
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return built


def shard(built: ActorCritic) -> None:
    """Each block in pieces by itself, the rest with the root, as accelerate does it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in list(built.modules()):
        if type(module).__name__ in built._no_split_modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(built, mesh=mesh, reshard_after_forward=True)


def loss_of(built: Any, rollout: Rollout) -> torch.Tensor:
    """Everything that a training loss reads of an evaluation."""
    now = built(rollout)
    return (
        now.logprobs.sum() + 0.3 * now.entropy.sum() + (now.values - 1).square().sum() + now.bootstrap_values.sum()
    ).float()


def largest_difference(sharded: ActorCritic, whole: ActorCritic) -> float:
    """Of any gradient, relative to the largest entry of the whole model's; of missing ones infinite."""
    differences = []
    for (name, ours), (name2, theirs) in zip(sharded.named_parameters(), whole.named_parameters(), strict=True):
        assert name == name2 and isinstance(ours, DTensor), name
        if theirs.grad is None:
            assert not theirs.requires_grad or ours.grad is None
            continue
        assert isinstance(ours.grad, DTensor), f"{name} has no gradient"
        gathered = ours.grad.full_tensor()
        differences.append(float((gathered - theirs.grad).abs().max() / theirs.grad.abs().max().clamp(min=1e-12)))
    return max(differences)


def run(model: str, kind: str, folder: Path) -> dict[str, Any]:
    """Roll out, learn and save in pieces; what differs from the same model whole."""
    rank = dist.get_rank()
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = build(model, kind)
    sharded = copy.deepcopy(whole)
    shard(sharded)
    data = prepare_prompts(prompts(6), tokenizer, None, "train")
    # The first process has one prompt and short responses, the second five prompts and long ones.
    rows = [torch.tensor([0]), torch.arange(1, 6)]
    generators = [TransformersGenerator(2), TransformersGenerator(9)]
    mine = prompt_batch(data, rows[rank], rows[rank])
    sharded.eval()
    with unsharded(sharded):
        rollout = generators[rank].generate(sharded.policy, mine, (7, 1))
        with torch.no_grad():  # as many evaluations as this process likes
            seen = [sharded(rollout).logprobs for _ in range(1 + rank)]
    again = generators[rank].generate(whole.policy, mine, (7, 1))
    found = {"same_tokens": rollout.input_ids.tolist() == again.input_ids.tolist(), "in_pieces": in_pieces(sharded)}
    found["tokens"] = rollout.completion_lists()
    with torch.no_grad():
        found["same_logprobs"] = bool(torch.allclose(seen[-1], whole(rollout).logprobs, atol=1e-5))
    found["parts"] = sum(isinstance(module, FSDPModule) for module in sharded.modules())
    # One pass on each process, then on the whole model those of all processes: FSDP takes the mean.
    loss_of(sharded, rollout).backward()
    for other in range(dist.get_world_size()):
        theirs = generators[other].generate(whole.policy, prompt_batch(data, rows[other], rows[other]), (7, 1))
        (loss_of(whole, theirs) / dist.get_world_size()).backward()
    found["gradients"] = largest_difference(sharded, whole)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        sharded.save_pretrained(folder / "sharded", state)
        whole.save_pretrained(folder / "whole")
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for described in sys.argv[2:]:
        kind, _, model = described.partition("=")
        place = Path(sys.argv[1], kind)
        place.mkdir(exist_ok=True)
        result = run(model, kind, place)
        (place / f"result-{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
