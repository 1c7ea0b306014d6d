"""Judgement: p-values, error rates of lists, effects, designs that stop early, several networks."""
