"""Agents in the SGLang frontend language, with tool calls the engine can see."""
