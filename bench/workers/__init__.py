"""Processes that run an engine for `bench.peers`; `protocol` says how they are spoken to."""
