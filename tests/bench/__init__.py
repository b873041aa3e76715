"""``remit bench``: that it measures what it says and reports what it could not. No test here asserts a time."""
