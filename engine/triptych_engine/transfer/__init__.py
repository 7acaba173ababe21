"""Hand-over between instances: leases, the KV link, and the store of embeddings.

Runs in the server process on its event loop and never imports torch. The producer grants a lease over blocks
that its core keeps `in transfer` (`leases`), listens on the KV port (`link_server`) and sends the bytes
straight from the shared pool. The consumer (`link_client`) dials only what discovery lists, receives into its
own pool and verifies its own copy. `service.Handover` is all that the request handlers see.
"""
