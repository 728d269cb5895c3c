"""Many runs with stored settings that answer a question, and the page made of them."""
