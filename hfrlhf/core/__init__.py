"""Pure torch functions: the mathematics of the package, with no config object and no input or output.

One room per subject: `masking` (sums and means over valid tokens), `randomness` (numbers with an address), `logprobs`
(log-probabilities and entropy from hidden states; their gradient in `logprob_gradients`), `kl` (divergences) and
`kl_coefficients` (which follow them), `reward_shaping` (scores to per-token rewards), `returns`, `baselines`,
`advantages` (what a policy gradient is weighted with), `policy_losses`, `value_losses`, `preference_losses`.

Legend: **B** sequences, **A** response positions (right-padded), **V** vocabulary, **N** tokens, **d** hidden width. A
mask is True where the position counts. Functions take tensors first, then the mask, then scalars; they keep float32 and
float64 as they are and compute in float32 what comes in a narrower type.
"""
