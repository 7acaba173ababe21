"""The server process: HTTP, tokenising, detokenising, and the instance API. It never imports torch."""
