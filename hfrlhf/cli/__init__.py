"""The recipes' command line: what can be said before torch is loaded, and how mistakes are told."""
