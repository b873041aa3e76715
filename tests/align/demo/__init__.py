"""A real agent fixes a bug while its model is hostile; a witness on the host says what took effect.

``python -m tests.align.demo`` runs it. Nothing here imports Remit: the sandbox is a command that stands before the
agent's tool calls, and what is believed about it is what the host shows afterwards.
"""
