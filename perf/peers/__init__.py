"""Other people's ways to the same results, each behind the same small adapter."""
