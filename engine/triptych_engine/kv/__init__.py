"""Paged KV: geometry and memory of the pool, block accounting, prefix cache, audit."""
