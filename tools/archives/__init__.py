"""The parts of `archive_trial.py`: drawn archives, runs of them, and loops to compare with."""
