"""Remit runs an AI agent, or each of its tool calls, with exactly the authority it was granted."""

__version__ = "0.1.0"
