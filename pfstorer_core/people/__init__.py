"""The people in a picture: where their heads are, and who is who."""
