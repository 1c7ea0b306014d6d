"""All of it for one model: findings, verdicts, the page, the shell."""
