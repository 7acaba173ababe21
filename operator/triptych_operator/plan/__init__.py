"""Pure decisions about how many instances there are and which role each one has."""
