"""transformers, peft and bitsandbytes behind small functions: policy with critic, reference, adapters, reward model."""
