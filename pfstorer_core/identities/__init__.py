"""Identity adapters: the personalization blocks of a person, their sizes and their file."""
