"""The parts of `archive.py`: a workflow over folders of photos, on any number of machines."""
