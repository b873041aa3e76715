"""What leaves a session's network namespace, and how: ``inside`` makes the way to the gateway, ``gateway`` decides."""
