"""The way of a network: trace, rewrite, annotate, prepare, convert."""
