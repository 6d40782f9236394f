"""Sampling responses: prompts in, a `Rollout` out.

The decode loop is our own, for three things `generate()` of transformers does not do: each token is drawn by inverse
CDF from numbers addressed by episode, so that the text depends neither on batch nor on process; its log-prob is
recorded as it is drawn; and rows that are done leave the loop. `generate()` is the oracle it is tested against.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.randomness import uniforms
from ..experience import Prompts, Rollout
from ..models.anatomy.sizes import largest
from ..models.policy.checks import check_positions
from .contract import LanguageModel, Sampling
from .decoding import Decoding, rows_in_loop
from .examination import examined
from .sampling import draw, warn_of_own_sampling

# Rows that are done leave once they are this share of the batch: copying the cache of the rest costs about a step.
LEAVING_SHARE = 1 / 16
# Beyond this many rows a forward is no more efficient per row.
MOST_ROWS = 512


@dataclass(frozen=True)
class TransformersGenerator:
    """Samples with the transformers model itself.

    Args:
        max_completion_length: A, tokens a response may have, the stop token included.
        temperature: divides the logits. 0 takes the most probable token each time, for evaluation; the log-probs are
            then those at temperature 1.
        stop_token_id: token that ends a response; None if only the length does.
        vocabulary: how many tokens there are to draw from (`models.anatomy.vocabulary`); None for as many as the model
            has logits for.
        max_rows: rows decoded at once; by default what a cache of a quarter of the device's memory holds (of 1 GiB on
            the CPU).

    Raises:
        ValueError: a number that makes no sense.
    """

    max_completion_length: int
    temperature: float = 1.0
    stop_token_id: int | None = None
    max_rows: int | None = None
    vocabulary: int | None = None

    @classmethod
    def of(cls, sampling: Sampling) -> TransformersGenerator:
        """The generator of a run."""
        return cls(**dataclasses.asdict(sampling))

    def __post_init__(self) -> None:
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length={self.max_completion_length}: a response has at least 1 token")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature={self.temperature}: use a positive number (1.0 samples from the model as it is), or 0 "
                "for the most probable token"
            )
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows}: at least one row is decoded at a time; None sets no limit")

    @torch.no_grad()
    def generate(self, model: LanguageModel, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt, a function of the model, the prompt, the address and the prompt's episode.

        Args:
            model: causal language model of transformers, plain or wrapped by PEFT; used in eval mode, and left in the
                mode it was in.
            prompts: P columns. address: of the random numbers, e.g. (seed, rollout).

        Returns:
            the rows in the order of the prompts, on their device; A is the length of the longest response.

        Raises:
            ValueError: prompt and response do not fit the model's positions, or the model cannot be sampled with its
                state (`DecodingIsWrong`).
            FloatingPointError: the model's probabilities are not finite.
        """
        warn_of_own_sampling(model, self.temperature)
        longest = int(prompts.attention_mask.sum(-1).max()) if len(prompts) else 0
        check_positions({type(model).__name__: model}, longest, self.max_completion_length)
        here, steps = prompts.to(model.device), self.max_completion_length
        # Two numbers per token, see `draw`; mps has no float64.
        numbers = uniforms(address, prompts.episode, 2 * steps).view(len(prompts), steps, 2)
        numbers = numbers.to(model.device, torch.float32 if model.device.type == "mps" else torch.float64)
        tokens = torch.zeros(len(prompts), steps, dtype=torch.long, device=model.device)
        logprobs = torch.zeros(len(prompts), steps, device=model.device)
        with evaluation_mode(model):
            decoding = examined(model)
            for rows in self._batches(model, here, decoding.pads):
                tokens[rows], logprobs[rows] = self._decode(model, here.select(rows), numbers[rows], decoding)
        return self._rollout(here, tokens, logprobs).to(prompts.input_ids.device)

    def _batches(self, model: LanguageModel, prompts: Prompts, pads: bool) -> list[Tensor]:
        """Rows that are decoded together: neighbours in length, as many as memory allows, shared out evenly.

        Without padding all rows of a batch are of one length.
        """
        if not len(prompts):
            return []
        lengths = prompts.attention_mask.sum(-1)
        rows = self.max_rows or rows_that_fit(model, int(lengths.max()) + self.max_completion_length)
        order = lengths.argsort(stable=True)
        alike = [order] if pads else order.split(lengths.unique(return_counts=True)[1].tolist())
        return [part for group in alike for part in group.tensor_split(math.ceil(len(group) / rows))]

    def _decode(
        self, model: LanguageModel, prompts: Prompts, numbers: Tensor, decoding: Decoding
    ) -> tuple[Tensor, Tensor]:
        """[b,A] tokens and log-probs for prompts in ascending length; behind a row's stop token they mean nothing."""
        steps = self.max_completion_length
        batch = rows_in_loop(model, prompts, steps, decoding)
        tokens = torch.zeros_like(numbers[..., 0], dtype=torch.long)
        logprobs = torch.zeros_like(numbers[..., 0], dtype=torch.float32)
        rows = torch.arange(len(prompts), device=numbers.device)  # which rows the lines of the batch are
        running = torch.ones_like(rows, dtype=torch.bool)
        logits = batch.prefill()
        for step in range(steps):
            drawn, logprobs[rows, step] = draw(logits[:, : self.vocabulary], numbers[rows, step], self.temperature)
            tokens[rows, step] = drawn
            if self.stop_token_id is not None:
                running = running & (drawn != self.stop_token_id)
            count = int(running.sum())
            if count == 0 or step == steps - 1:
                break
            if decoding.leaves and len(rows) - count >= LEAVING_SHARE * len(rows):
                keep = running.nonzero().squeeze(1)
                batch.keep(keep)
                rows, drawn, running = rows[keep], drawn[keep], running[keep]
            logits = batch.step(drawn)
        return tokens, logprobs

    def _rollout(self, prompts: Prompts, tokens: Tensor, logprobs: Tensor) -> Rollout:
        """Prompts and responses as one record, everything behind the first stop token blanked."""
        stops = torch.zeros_like(tokens, dtype=torch.bool)
        if self.stop_token_id is not None:
            stops = tokens == self.stop_token_id
        mask = stops.cumsum(-1) - stops.long() == 0  # no stop token before this one
        longest = int(mask.sum(-1).max()) if len(prompts) else 0
        mask, tokens, logprobs = mask[:, :longest], tokens[:, :longest], logprobs[:, :longest]
        logprobs = torch.where(mask, logprobs, 0.0)
        if not logprobs.isfinite().all():
            broken = (~logprobs.isfinite()).any(-1)
            raise FloatingPointError(
                f"the policy gives no finite probabilities in {int(broken.sum())} of {len(broken)} responses; its "
                "weights or activations are NaN or infinite: lower the learning rate, or compute in bfloat16 or float32"
            )
        return Rollout(
            input_ids=torch.cat([prompts.input_ids, torch.where(mask, tokens, 0)], dim=1),
            attention_mask=torch.cat([prompts.attention_mask.bool(), mask], dim=1),
            action_mask=mask,
            terminated=stops.any(-1),
            episode=prompts.episode,
            row=prompts.row,
            sampler_logprobs=logprobs,
        )


def rows_that_fit(model: LanguageModel, tokens: int) -> int:
    """How many rows of so many tokens a KV cache of a quarter of the device's memory holds (of 1 GiB on the CPU).

    A fixed share, not what happens to be free: a resumed run must form the same batches.
    """
    config = model.config.get_text_config()
    heads = largest(config, "num_attention_heads")
    if heads is None:  # no attention: a state of fixed size
        return MOST_ROWS
    head_dim = largest(config, "head_dim") or config.hidden_size // heads
    key_value_heads = largest(config, "num_key_value_heads") or heads
    row: int = 2 * config.num_hidden_layers * key_value_heads * head_dim * model.dtype.itemsize * tokens
    memory = torch.cuda.get_device_properties(model.device).total_memory // 4 if model.device.type == "cuda" else 2**30
    return min(MOST_ROWS, max(1, memory // row))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode for a while; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
