"""What checks are written with: the oracle, cases, requests, and watches on a library."""
