"""The operator: an LLMService becomes running pools, and its status says what it waits for.

    event | tick → observe → Snapshot → reconcile(snapshot, now) → actions + status + reasons → apply

`spec` reads the file, `plan` and `diff` decide, `platforms` act. Nothing here imports router or engine.
"""
