"""Chains of reasoning: their form, who writes them, what is kept, what each line rests on."""
