"""Where instances run. `local` runs them as child processes of this machine."""
