"""Pictures: on disk, their values, sizes, colours and detail, and views of them."""
