"""A small procedural world: solid objects of eight kinds in eight colours, seen from anywhere, with captions."""
