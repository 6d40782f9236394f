"""The demo's promises, held against the metrics.json it left:   python .ci/check_demo.py runs/…/metrics.json"""

import json
import sys
from pathlib import Path

# metric, least, most
PROMISES = [
    ("win_rate", 0.85, 1.0),  # against the SFT model, by the gold preference, on held-out prompts
    ("kl", 0.0, 15.0),  # nats per response
    ("ended", 0.90, 1.0),  # share of responses that end by themselves
    ("distinct_of_sft", 0.50, 100.0),  # distinct responses, as a share of the SFT model's
    ("test_prompts", 200, 1e9),  # held-out prompts behind these numbers
    ("seconds", 0.0, 240.0),  # the whole run on two CPU cores
    ("peak_memory_gb", 0.0, 2.0),
]

metrics = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
broken = []
for name, least, most in PROMISES:
    value = metrics[name]
    kept = least <= value <= most
    print(f"{name:16} {value:8.3f}   promised {least:g} to {most:g}   {'kept' if kept else 'BROKEN'}")
    broken += [] if kept else [name]
sys.exit(f"broken: {', '.join(broken)}" if broken else 0)
