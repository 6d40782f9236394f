"""Every setting once: its field declares default, range, unit, help, who reads it, and what a resume depends on."""
