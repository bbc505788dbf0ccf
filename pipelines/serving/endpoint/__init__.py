"""The HTTP application in OpenAI's shape: what it takes, answers, refuses and counts, and how it runs."""
