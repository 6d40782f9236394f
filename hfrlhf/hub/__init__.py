"""What a trained model is published with: its card (facts in, text out) and the way to the Hub."""
