"""Speed, measured beside a peer."""
