"""What a person sees of a run, and finds of it afterwards: lines, bars, tables, curves, files."""
