"""A vision-language model as a judge: what it is asked, how it is reached, and what its answers are worth."""
