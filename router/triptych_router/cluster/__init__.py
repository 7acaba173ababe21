"""What the router believes about instances, and how it comes to know."""
