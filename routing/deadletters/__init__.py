"""Dead letters for people: which ones are meant, and how they run again."""
