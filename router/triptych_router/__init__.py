"""The front door: reads a request, chooses instances, runs its legs and streams the answer.

    bytes → api.parse → admission → schedule.route → dispatch.flow → dispatch.attempt → dispatch.ledger → bytes

Decisions (`api.scan`, `api.parse`, `api.sse`, `cluster.health`, `schedule`, `dispatch.retry`, `dispatch.ledger`)
are pure functions over frozen snapshots; HTTP lives in `api.handlers`, `cluster.watch` and `dispatch.attempt`.
"""
