"""Other harmonizers than HACA3, put through the same study: what they have to be, some simple ones, and
programs."""
