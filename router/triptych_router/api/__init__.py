"""What a client sends and gets: members of a body, events of a stream, errors, endpoints."""
