"""What a trained model is published with: its card (facts in, text out). The Trainer takes it to the Hub."""
