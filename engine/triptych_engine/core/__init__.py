"""The core process: its settings, the board, requests, and the loop from inbox to outbox."""
