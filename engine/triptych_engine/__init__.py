"""The engine: a complete OpenAI server by itself, in two processes.

The **server** process (`server`, `transfer`) speaks HTTP and the KV link, tokenises and detokenises; it never
imports torch. The **core** process (`core`, `kv`, `schedule`, `executor`) batches and computes. They are
joined by an inbox and an outbox of plain structs (`messages`), because one busy Python thread beside a chain
of small torch operations makes a step hundreds of times slower, and another process does not.
"""
