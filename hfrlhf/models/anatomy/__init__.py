"""What a model is made of and what it can read: sizes, positions, vocabulary, precision, modes."""
