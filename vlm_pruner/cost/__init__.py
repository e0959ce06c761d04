"""What a prompt costs, and which setting meets a budget."""
