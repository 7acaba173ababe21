"""What the next step computes: budgets, batch, and whose blocks are taken back when they run out."""
