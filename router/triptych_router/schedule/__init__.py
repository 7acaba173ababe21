"""Pure: which instances serve a request, and why."""
