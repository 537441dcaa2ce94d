"""The Quart app behind the front, and hypercorn's protocol serving it, one request at a time."""
