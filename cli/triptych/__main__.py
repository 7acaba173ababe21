"""`python -m triptych`."""

from triptych.main import run

if __name__ == "__main__":
    run()
