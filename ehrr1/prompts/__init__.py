"""Build prompts from samples and tokenise them."""
