"""How fast is it: `remit run` beside what it is compared with (`python -m tests.bench.run`). Nothing here is a test."""
