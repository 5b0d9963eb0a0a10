"""A study as files: what each step makes when it is missing, and the rule that decides what is done."""
