"""What a prompt costs, and the setting that meets a budget."""
