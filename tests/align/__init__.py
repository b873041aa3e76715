"""Action alignment, seen from outside: real agents, hostile models, and witnesses that share no code with Remit."""
