"""How a route is carried out: legs, attempts, retries, leases, the ledger."""
